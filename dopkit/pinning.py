"""Which commits a recipe means: those of the unfinished merge that a run continues, else what the Hub says now.

A branch that moves between two runs then cannot change a merge that is being continued. What is remembered stands in
the first line of the journal, beside a digest of the recipe as it was given, before its refs were pinned.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from dopkit import refs
from dopkit.recipe import Recipe
from dopkit.refs import ModelRef
from dopkit.writer import OutputFolder, read_journal

_RECIPE, _PINS, _BASES = "recipe", "pins", "bases"


def remembered(recipe: Recipe, output: OutputFolder) -> dict[ModelRef, ModelRef]:
    """The pins of the unfinished merge in the way of ``output``, if it is of this very recipe and will be continued."""
    lines = [] if output.overwrite else read_journal(output.partial)
    if not lines or lines[0].get(_RECIPE) != _digest(recipe) or not isinstance(lines[0].get(_PINS), dict):
        return {}
    pins: dict[str, Any] = lines[0][_PINS]
    bases = lines[0].get(_BASES)
    named = dict.fromkeys(ref for ref, _ in _named(recipe) if ref.stage is None)
    found = {ref: _pinned(ref, pins, bases if isinstance(bases, dict) else {}) for ref in named}
    return {ref: pin for ref, pin in found.items() if pin is not None and pin != ref}


def _pinned(ref: ModelRef, pins: dict[str, Any], bases: dict[str, Any]) -> ModelRef | None:
    """The ref with every part at the commit it had; None where one is not known."""
    own, adapter = _at(ref.without_adapter, pins), ref.adapter and _at(ref.adapter, pins)
    if own is None or (ref.adapter is not None and adapter is None):
        return None
    if ref.adapter is None and not ref.part and ref.text in bases:  # an adapter that was named alone
        base = refs.parse(str(bases[ref.text]), Path())
        return base.with_adapter(own) if base.pinned else None
    return own if adapter is None else own.with_adapter(adapter)


def _at(ref: ModelRef, pins: dict[str, Any]) -> ModelRef | None:
    if ref.repo is None or ref.pinned:
        return ref
    pin = ref.at(str(pins[ref.text])) if ref.text in pins else None
    return pin if pin is not None and pin.pinned else None


def to_remember(recipe: Recipe, pinned: Recipe) -> dict[str, Any]:
    """What the journal of a merge says of its refs. ``recipe`` is as it was given, its order drawn."""
    pins: dict[str, str | None] = {}
    bases: dict[str, str] = {}
    for (ref, base), (pin, _) in zip(_named(recipe), _named(pinned), strict=True):
        parts = [(ref.without_adapter, pin.without_adapter), (ref.adapter, pin.adapter)]
        if ref.adapter is None and pin.adapter is not None:
            parts = [(ref, pin.adapter)]
            if base is None:  # it named its base itself
                bases[ref.text] = pin.without_adapter.text
        pins |= {one.text: two.revision for one, two in parts if one and two and one.repo and not one.pinned}
    return {_RECIPE: _digest(recipe), _PINS: pins, **({_BASES: bases} if bases else {})}


def _named(recipe: Recipe) -> list[tuple[ModelRef, ModelRef | None]]:
    """What every document names, in its order, with the base of the document."""
    found: list[tuple[ModelRef, ModelRef | None]] = []
    for one in recipe.documents:
        whose = one.tokenizer.model if one.tokenizer is not None else None
        beside = [ref for entry in one.models for _, ref in sorted(entry.companions.items())]
        named = [one.donor, *(entry.model for entry in one.models), *beside, *([whose] if whose is not None else [])]
        found += [(ref, one.base_model) for ref in named]
    return found


def _digest(recipe: Recipe) -> str:
    """Equal for one recipe read twice, from wherever."""
    data = recipe.to_documents(Path("/"))
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
