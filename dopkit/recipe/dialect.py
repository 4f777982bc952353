"""mergekit's recipes: what of them has no effect here, and in what the result differs from mergekit 0.1.5's.

Judged from the recipe alone. docs/mergekit.md has the whole list, with reasons.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from dopkit.recipe import Recipe
from dopkit.recipe.tokenizer import TokenizerSettings

METHODS = frozenset({
    "linear", "slerp", "nuslerp", "multislerp", "karcher", "task_arithmetic", "ties", "dare_linear", "dare_ties",
    "della", "della_linear", "breadcrumbs", "breadcrumbs_ties", "sce", "model_stock", "nearswap", "arcee_fusion",
    "ram", "ramplus_tl", "passthrough",
})  # fmt: skip

# Parameters that mergekit takes and that change nothing in the result: left out, and said.
_MEMORY = "it only saves memory in mergekit"
_IDLE = {"task_arithmetic": {"density": "it trims nothing", "rescale": "there is nothing to rescale"}}
_SPEED = {"int8_mask": _MEMORY}

_DRAWS = (
    "entries are dropped by another draw, which depends on seed, tensor and model alone; what is kept is divided by "
    "its chance, where mergekit restores the sum of magnitudes of each tensor"
)
_SEED, _DRAWING = "random_seed", ("dare_", "della")
_GLOB = re.compile(r"[*?\[]")


def without_idle(data: Any, notes: list[str]) -> Any:
    """The recipe's data without what changes nothing in mergekit's result; why goes to ``notes``, each once."""
    method = str(data.get("merge_method")) if isinstance(data, dict) else ""
    found = _without(data, {**_SPEED, **_IDLE.get(method, {})}, notes)
    if isinstance(data, dict) and _SEED in data:
        seed = found.pop(_SEED)
        draws = method.startswith(_DRAWING) and "seed" not in data
        notes.append(
            f"{_SEED!r} is {'read as `seed`' if draws else 'left out'}: mergekit takes it on its command line alone"
        )
        found |= {"seed": seed} if draws else {}
    return found


def _without(data: Any, idle: dict[str, str], notes: list[str], inside: bool = False) -> Any:
    if isinstance(data, list):
        return [_without(value, idle, notes) for value in data]
    if not isinstance(data, dict):
        return data
    for name in idle.keys() & data.keys() if inside else ():
        note = f"{name!r} is left out: {idle[name]}"
        if note not in notes:
            notes.append(note)
    return {
        key: _without(value, idle, notes, inside=key == "parameters")
        for key, value in data.items()
        if not (inside and key in idle)
    }


def is_mergekits(recipe: Recipe) -> bool:
    """Whether mergekit would take it as well, as far as methods and keys go."""
    return all(map(_is_mergekits, recipe.documents))


def _is_mergekits(recipe: Recipe) -> bool:
    own = recipe.overrides or recipe.copied or recipe.heads or recipe.order != "given" or recipe.output != "model"
    own = own or (recipe.tokenizer is not None and recipe.tokenizer.source == "first")
    return recipe.merge_method in METHODS and not own


def differences(recipe: Recipe) -> Iterator[str]:
    """What mergekit 0.1.5 makes otherwise of a recipe that it takes as well, as sentences without a full stop."""
    for stage in recipe.stages:
        yield from (f"stage {stage.name}: {what}" for what in _differences(stage.recipe))
    yield from _differences(recipe)


def _differences(recipe: Recipe) -> Iterator[str]:
    method, parameters = recipe.merge_method, recipe.parameters
    if recipe.dtype in ("float16", "bfloat16"):
        yield f"the arithmetic is in float32 and rounded once at the end; mergekit reads and computes in {recipe.dtype}"
    if method.startswith(_DRAWING) and _drops(recipe):
        yield _DRAWS
    if method == "model_stock" and getattr(parameters, "filter_wise", False):
        yield "where the models point away from each other the base stays; mergekit moves to its other side"
    if method == "arcee_fusion":
        yield "the files keep the models' dtype; mergekit writes float32"
    if recipe.tokenizer is not None:
        yield from _of_tokens(recipe.tokenizer)
    if recipe.chat_template not in (None, "auto", "chatml") and "{" not in str(recipe.chat_template):
        yield f"the template {recipe.chat_template!r} is without the spaces and line ends too many that mergekit's has"
    if _weightless(recipe):
        yield "a model without `weight` counts 1; mergekit wants one for each"
    if any(len(part.slices[0].sources) < len(part.slices[-1].sources) for part in recipe.parts):
        yield (
            "the last norm and the head are merged from all sources of the last slice; mergekit takes as many as the "
            "first slice has"
        )
    if recipe.base_model is None:
        yield "config, tokenizer and side files come from the first model; mergekit takes them from any one of them"
    if any(_GLOB.search(pattern) for key, pattern in recipe.patterns() if key not in ("copy", "exclude")):
        yield "a filter with * ? or [ is a pattern for the whole name; mergekit looks for these very characters"


def _of_tokens(settings: TokenizerSettings) -> Iterator[str]:
    if settings.pad_to_multiple_of is None:
        yield "the embedding keeps rows beyond the tokens, as its model has them; mergekit cuts them off"
    if settings.source == "union":
        yield "new tokens come with their merges, in a fixed order; mergekit cuts them out of every word, in any order"


def _weightless(recipe: Recipe) -> bool:
    """Whether the weight of some model is left to a default, which mergekit's methods for task vectors do not have."""
    weight = type(recipe.parameters).model_fields.get("weight")
    if (
        weight is None
        or weight.default is None
        or weight.is_required()
        or "weight" in {**recipe.parameters.given(), **recipe.varying}
    ):
        return False
    if not recipe.parts:
        return any("weight" not in entry.parameters for entry in recipe.models)
    merged = {entry.model.key for entry in recipe.models}
    return any(
        "weight" not in {**part.parameters, **piece.parameters, **source.parameters}
        for part in recipe.parts
        for piece in part.slices
        for source in piece.sources
        if source.model.key in merged
    )


def _drops(recipe: Recipe) -> bool:
    """Whether any entry is dropped at all."""
    levels = [recipe.parameters.given(), recipe.varying, *(entry.parameters for entry in recipe.models)]
    levels += [source.parameters for part in recipe.parts for source in part.sources()]
    levels += [piece.parameters for part in recipe.parts for piece in part.slices]
    return any(level.get("density", 1) != 1 for level in levels)
