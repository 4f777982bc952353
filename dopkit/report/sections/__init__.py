"""The parts of the page: each a function from what is known to a section, or to nothing."""
