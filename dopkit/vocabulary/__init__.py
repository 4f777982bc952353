"""One vocabulary for all models of a merge: compared, united, and their rows put in its order.

Models whose tokenizers agree are left as they are. Afterwards they all look like models of one vocabulary, so neither
the planner nor the engine knows of tokens.
"""

from __future__ import annotations

from dopkit.vocabulary.aligning import Alignment, align

__all__ = ["Alignment", "align"]
