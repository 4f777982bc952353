"""``python -m dopkit`` is the ``dopkit`` command."""

from dopkit.cli import main

if __name__ == "__main__":
    main()
