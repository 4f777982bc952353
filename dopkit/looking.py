"""Opened models held against their classes, all named in one way, so that they can be compared and planned with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from dopkit import skeleton
from dopkit.checkpoints import AdapterCheckpoint, Checkpoint, Shared
from dopkit.checkpoints.files import module_weights
from dopkit.engine.stage import StageCheckpoint
from dopkit.planning import Adapted, Source
from dopkit.planning.matching import Model
from dopkit.planning.towers import tower_config
from dopkit.recipe import Recipe
from dopkit.refs import ModelRef
from dopkit.roles import Role


class _Looks:
    """How the models of one recipe are seen. Each class is held against the same tensors once: experts of one base
    have its config and its tensors."""

    def __init__(self, headless: bool) -> None:
        self._headless = headless
        self._seen: dict[str, skeleton.Skeleton] = {}

    def model(self, checkpoint: Checkpoint, config: Mapping[str, Any] | None) -> Model:
        shapes = _shapes(checkpoint)
        key = json.dumps([skeleton.class_config(config), list(shapes.items())], default=str)
        if key not in self._seen:
            self._seen[key] = skeleton.build(config, shapes, self._headless)
        return Model(source_of(checkpoint), checkpoint.specs, checkpoint.config, self._seen[key])


def look_at_all(checkpoints: Mapping[ModelRef, Checkpoint], recipe: Recipe) -> dict[ModelRef, Model]:
    """How each model's class sees its tensors. All are named in one way, so that they can be compared.

    A model whose own class cannot be built is held against the donor's; if the donor's cannot, all go by their names.
    A base that is more than the models are, a whole CLIP to their vision towers, is seen as what they are.
    """
    donor, looks = recipe.donor, _Looks(recipe.headless)
    if towers := _as_towers(checkpoints, recipe):
        return towers
    config = checkpoints[donor].config
    models = {donor: looks.model(checkpoints[donor], config)}
    by_name = models[donor].skeleton.fallback is not None
    for ref, checkpoint in checkpoints.items():
        if ref == donor:
            continue
        models[ref] = looks.model(checkpoint, config if by_name else checkpoint.config)
        if models[ref].skeleton.fallback and not by_name:
            models[ref] = looks.model(checkpoint, config)
    return models


def _as_towers(checkpoints: Mapping[ModelRef, Checkpoint], recipe: Recipe) -> dict[ModelRef, Model] | None:
    """All models, the base as the one of its towers that each of the others is; None where they are no towers of it."""
    base, others = checkpoints[recipe.donor], [checkpoints[entry.model] for entry in recipe.models]
    configs = [tower_config(base.config, other.config) for other in others]
    if configs[0] is None or None in configs:
        return None
    looks = _Looks(recipe.headless)
    models = {other.ref: looks.model(other, other.config) for other in others}
    seen = Model(source_of(base), base.specs, base.config, _tower(base, configs[0], recipe.headless))
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


def _tower(whole: Checkpoint, config: Mapping[str, Any], headless: bool) -> skeleton.Skeleton:
    return skeleton.build_tower(whole.config, config, _shapes(whole), headless)


def look_at_companions(
    companions: Mapping[ModelRef, Checkpoint], models: Mapping[ModelRef, Model], recipe: Recipe
) -> list[dict[str, Model]]:
    """What is read beside each of the recipe's models, by parameter: its tensors named as those of the model are."""
    found, looks = [], _Looks(recipe.headless)
    for entry in recipe.models:
        model = models[entry.model]
        config = models[recipe.donor].config if model.skeleton.fallback else model.config
        found.append({
            name: looks.model(companions[ref], config) for name, ref in entry.companions.items()
        })  # fmt: skip
    return found


def _shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    return {name: spec.shape for name, spec in checkpoint.specs.items()}


def source_of(checkpoint: Checkpoint) -> Source:
    """What the plan records of an opened model."""
    nbytes = sum(spec.nbytes for spec in checkpoint.specs.values())
    adapted, own = None, checkpoint
    staged = checkpoint.staged if isinstance(checkpoint, StageCheckpoint) else None
    if isinstance(checkpoint, Shared) and isinstance(checkpoint.source, StageCheckpoint):
        staged = checkpoint.source.staged
    if isinstance(checkpoint, AdapterCheckpoint):
        adapted = Adapted(source_of(checkpoint.base), checkpoint.factors, checkpoint.whole)
        own = checkpoint.adapter
    return Source(
        checkpoint.ref,
        checkpoint.identity,
        checkpoint.state,
        nbytes,
        own.download_bytes,
        (*checkpoint.notes, *_modules_note(checkpoint)),
        complete=checkpoint.complete,
        missing=own.missing,
        adapted=adapted,
        staged=staged,
        remembered=isinstance(checkpoint, Shared),
    )


def _modules_note(checkpoint: Checkpoint) -> Iterator[str]:
    if modules := module_weights(checkpoint.side_files):
        what = "modules of sentence-transformers with weights of their own are not merged, the base's are taken"
        yield f"{checkpoint.ref.short}: {what} ({', '.join(modules)})"
