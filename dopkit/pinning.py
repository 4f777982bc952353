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
    found = {ref: _pinned(ref, pins, bases if isinstance(bases, dict) else {}) for ref in recipe.all_refs}
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
    given, now = _in_order(recipe), _in_order(pinned)
    if recipe.tokenizer_ref is not None and pinned.tokenizer is not None and pinned.tokenizer.model is not None:
        given, now = [*given, recipe.tokenizer_ref], [*now, pinned.tokenizer.model]
    pins: dict[str, str | None] = {}
    bases: dict[str, str] = {}
    for ref, pin in zip(given, now, strict=True):
        parts = [(ref.without_adapter, pin.without_adapter), (ref.adapter, pin.adapter)]
        if ref.adapter is None and pin.adapter is not None:
            parts = [(ref, pin.adapter)]
            if recipe.base_model is None:  # it named its base itself
                bases[ref.text] = pin.without_adapter.text
        pins |= {one.text: two.revision for one, two in parts if one and two and one.repo and not one.pinned}
    return {_RECIPE: _digest(recipe), _PINS: pins, **({_BASES: bases} if bases else {})}


def _in_order(recipe: Recipe) -> list[ModelRef]:
    """Every ref in every place, in one order whatever they are pinned to."""
    beside = [ref for entry in recipe.models for _, ref in sorted(entry.companions.items())]
    return [recipe.donor, *(entry.model for entry in recipe.models), *beside]


def _digest(recipe: Recipe) -> str:
    """Equal for one recipe read twice, from wherever."""
    data = recipe.to_data(Path("/"))
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
