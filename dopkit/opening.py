"""Every model of a recipe, opened at its commit and held against its class, ready to be planned with.

What cannot be opened becomes a problem, so that all problems are told together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dopkit import hub, skeleton
from dopkit.checkpoints import Checkpoint, OnlyPickles, open_checkpoint
from dopkit.errors import DopkitError, Problem
from dopkit.planning import Source
from dopkit.planning.matching import Model
from dopkit.planning.towers import tower_config
from dopkit.progress import Progress
from dopkit.recipe import Recipe
from dopkit.refs import ModelRef
from dopkit.roles import Role
from dopkit.units import show_size


def open_all(
    recipe: Recipe, pins: Mapping[ModelRef, ModelRef], progress: Progress, download: bool
) -> tuple[dict[ModelRef, Checkpoint], list[Problem]]:
    """Pin each model, but for those that ``pins`` has, and open it; the models that could be, and the problems.

    A model that must be downloaded before it can be opened is, with ``download``, if nothing else is wrong.
    """
    progress.stage("reading headers")
    opened: dict[ModelRef, Checkpoint] = {}
    problems: list[Problem] = []
    pickled: dict[ModelRef, OnlyPickles] = {}
    for ref in recipe.refs:
        try:
            opened[ref] = open_checkpoint(pins.get(ref) or hub.pin(ref))
        except OnlyPickles as found:
            pickled[ref] = found
        except DopkitError as error:
            problems.append(error.as_problem())
    problems += _no_room(pickled)
    if problems or not download:
        return opened, [*problems, *(unread.as_problem() for unread in pickled.values())]
    for ref, unread in pickled.items():
        progress.note(f"{unread.ref.short} has no safetensors: downloading {unread.size} before it can be planned")
        try:
            unread.fetch()
            opened[ref] = open_checkpoint(unread.ref)
        except DopkitError as error:
            problems.append(error.as_problem())
    return opened, problems


def _no_room(pickled: Mapping[ModelRef, OnlyPickles]) -> list[Problem]:
    need, have = sum(unread.nbytes for unread in pickled.values()), hub.cache_disk(Path.cwd())[0]
    if need <= have:
        return []
    what = f"too little disk space for downloads: {show_size(need)} needed, {show_size(have)} there"
    return [Problem("", what, "Free some, or set HF_HOME.")]


def merged_twice(recipe: Recipe) -> Iterator[Problem]:
    """Two refs that look different and mean one commit; the recipe alone cannot tell."""
    seen = set()
    for entry in recipe.models:
        if entry.model.key in seen:
            yield Problem(entry.model.short, "is listed twice, under two revisions that are one commit")
        seen.add(entry.model.key)


def look_at_all(checkpoints: Mapping[ModelRef, Checkpoint], recipe: Recipe) -> dict[ModelRef, Model]:
    """How each model's class sees its tensors. All are named in one way, so that they can be compared.

    A model whose own class cannot be built is held against the donor's; if the donor's cannot, all go by their names.
    A base that is more than the models are, a whole CLIP to their vision towers, is seen as what they are.
    """
    donor, headless = recipe.donor, recipe.headless
    if towers := _as_towers(checkpoints, recipe):
        return towers
    config = checkpoints[donor].config
    models = {donor: _look_at(checkpoints[donor], config, headless)}
    by_name = models[donor].skeleton.fallback is not None
    for ref, checkpoint in checkpoints.items():
        if ref == donor:
            continue
        models[ref] = _look_at(checkpoint, config if by_name else checkpoint.config, headless)
        if models[ref].skeleton.fallback and not by_name:
            models[ref] = _look_at(checkpoint, config, headless)
    return models


def _as_towers(checkpoints: Mapping[ModelRef, Checkpoint], recipe: Recipe) -> dict[ModelRef, Model] | None:
    """All models, the base as the one of its towers that each of the others is; None where they are no towers of it."""
    base, others = checkpoints[recipe.donor], [checkpoints[entry.model] for entry in recipe.models]
    configs = [tower_config(base.config, other.config) for other in others]
    if configs[0] is None or None in configs:
        return None
    models = {other.ref: _look_at(other, other.config, recipe.headless) for other in others}
    seen = _look_at(base, configs[0], recipe.headless)
    beside = seen.skeleton.unknown
    specs = {name: spec for name, spec in seen.specs.items() if name not in beside}
    tower = replace(seen, specs=specs, config=configs[0], beside=tuple(sorted(beside)))
    known = [canonical for model in models.values() for canonical in model.names if _of_backbone(model, canonical)]
    if any(model.skeleton.fallback for model in (tower, *models.values())) or not tower.names.keys() >= set(known):
        return None
    return {recipe.donor: tower, **models}


def _of_backbone(model: Model, canonical: str) -> bool:
    name = model.names[canonical]
    return name not in model.skeleton.unknown and model.role(name) is not Role.HEAD


def _look_at(checkpoint: Checkpoint, config: Mapping[str, Any] | None, headless: bool) -> Model:
    shapes = {name: spec.shape for name, spec in checkpoint.specs.items()}
    nbytes = sum(spec.nbytes for spec in checkpoint.specs.values())
    facts = (checkpoint.identity, checkpoint.state, nbytes, checkpoint.download_bytes, checkpoint.notes)
    source = Source(checkpoint.ref, *facts, complete=checkpoint.complete, missing=checkpoint.missing)
    return Model(source, checkpoint.specs, checkpoint.config, skeleton.build(config, shapes, headless))
