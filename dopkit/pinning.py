"""Which commits a recipe means: those of the unfinished merge that a run continues, else what the Hub says now.

A branch that moves between two runs then cannot change a merge that is being continued. What is remembered stands in
the first line of the journal, beside a digest of the recipe as it was given, before its refs were pinned.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from dopkit.recipe import Recipe
from dopkit.refs import ModelRef
from dopkit.writer import OutputFolder, read_journal

_RECIPE, _PINS = "recipe", "pins"


def remembered(recipe: Recipe, output: OutputFolder) -> dict[ModelRef, ModelRef]:
    """The pins of the unfinished merge in the way of ``output``, if it is of this very recipe and will be continued."""
    lines = [] if output.overwrite else read_journal(output.partial)
    if not lines or lines[0].get(_RECIPE) != _digest(recipe) or not isinstance(lines[0].get(_PINS), dict):
        return {}
    pins: dict[str, Any] = lines[0][_PINS]
    found = {ref: ref.at(str(pins[ref.text])) for ref in recipe.refs if ref.repo and ref.text in pins}
    return {ref: pin for ref, pin in found.items() if pin.pinned}


def to_remember(recipe: Recipe, pinned: Recipe) -> dict[str, Any]:
    """What the journal of a merge says of its refs. ``recipe`` is as it was given, its order drawn."""
    given = [recipe.donor, *(entry.model for entry in recipe.models)]
    now = [pinned.donor, *(entry.model for entry in pinned.models)]
    pins = {ref.text: pin.revision for ref, pin in zip(given, now, strict=True) if ref.repo and not ref.pinned}
    return {_RECIPE: _digest(recipe), _PINS: pins}


def _digest(recipe: Recipe) -> str:
    """Equal for one recipe read twice, from wherever."""
    data = recipe.to_data(Path("/"))
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
