"""The models of a recipe, opened and planned with: what every verb begins with that reads weights.

Knows no output folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from dopkit import skeleton, vocabulary
from dopkit.checkpoints import Checkpoint
from dopkit.errors import PlanError, Problem, count
from dopkit.opening import (
    look_at_all,
    look_at_companions,
    merged_twice,
    open_all,
    open_companions,
    pin_tokenizer,
)
from dopkit.planning import Plan
from dopkit.planning.building import Room, Wanted, build
from dopkit.planning.matching import Model
from dopkit.progress import Progress
from dopkit.recipe import Recipe
from dopkit.refs import ModelRef


@dataclass(frozen=True)
class Sources:
    """Opened models and the plan made from them."""

    plan: Plan
    donor: Checkpoint
    models: Sequence[Checkpoint]  # in merge order
    companions: Sequence[Mapping[str, Checkpoint]]  # what is read beside each model, by parameter
    donor_model: Model  # with the config of the result where slices give that other layers

    @property
    def distinct(self) -> list[Checkpoint]:
        """Each model once, the donor first."""
        return list(dict.fromkeys([self.donor, *self.models]))

    @property
    def read(self) -> list[Checkpoint]:
        """Those, and what is read beside them."""
        beside = (checkpoint for companions in self.companions for checkpoint in companions.values())
        return list(dict.fromkeys([*self.distinct, *beside]))


@contextmanager
def open_sources(
    recipe: Recipe,
    room: Room,
    progress: Progress,
    max_shard_size: int,
    stream: bool = False,
    download: bool = False,
    pins: Mapping[ModelRef, ModelRef] | None = None,
    obstacles: Sequence[Problem] = (),
    wanted: Wanted | None = None,
) -> Iterator[Sources]:
    """Open every model of a recipe and plan its merge; closed at the end.

    ``wanted`` is what the merge writes besides, and goes on from; ``download`` fetches what cannot be planned without;
    ``obstacles`` are problems found elsewhere, to be told with those found here. Raises PlanError with all of them.
    """
    seed = (recipe.seed or 0) if recipe.order == "shuffle" else None
    recipe = recipe.drawn()
    with ExitStack() as stack:
        opened, problems = open_all(recipe, pins or {}, progress, download and not obstacles)
        beside, more = open_companions(recipe, pins or {}, opened, progress, download and not (obstacles or problems))
        problems += [*more, *obstacles]
        for checkpoint in (*opened.values(), *beside.values()):
            stack.callback(checkpoint.close)
        wanting = len(opened) < len(recipe.refs) or len(beside) < len(recipe.companions)
        if wanting:  # without every header there is nothing to compare
            raise PlanError(f"cannot merge: {count(len(problems), 'problem')}", problems)
        refs = {ref: checkpoint.ref for ref, checkpoint in (opened | beside).items()}
        recipe = recipe.with_refs({**refs, **pin_tokenizer(recipe, pins or {})})
        problems += merged_twice(recipe)
        checkpoints = {checkpoint.ref: checkpoint for checkpoint in opened.values()}
        aligned = vocabulary.align(recipe, checkpoints, look_at_all(checkpoints, recipe))
        checkpoints |= {checkpoint.ref: checkpoint for checkpoint in beside.values()}
        models, problems = aligned.models, problems + aligned.problems
        companions = look_at_companions(checkpoints, models, recipe)
        in_order = [entry.model for entry in recipe.models]
        planned = [models[ref] for ref in in_order]
        donor, notes = models[recipe.donor], aligned.notes
        plan = build(recipe, donor, planned, room, max_shard_size, seed, problems, stream, wanted, notes, companions)
        donor = _with_layers(donor, plan)
        if plan.streamed:
            checkpoints = {ref: checkpoint.streamed() for ref, checkpoint in checkpoints.items()}
            for checkpoint in checkpoints.values():
                stack.callback(checkpoint.close)
        checkpoints = aligned.wrap(checkpoints)
        for checkpoint in checkpoints.values():
            stack.callback(checkpoint.close)
        in_hand = [checkpoints[ref] for ref in in_order]
        also = [{name: checkpoints[ref] for name, ref in entry.companions.items()} for entry in recipe.models]
        yield Sources(plan, checkpoints[recipe.donor], in_hand, also, donor)


def _with_layers(donor: Model, plan: Plan) -> Model:
    """The donor with the config of the result, where that has other layers. Raises PlanError when none would load."""
    if not plan.layers or donor.config is None:
        return donor
    config = skeleton.resized(donor.config, plan.layers)
    shown = donor.source.ref.short
    if config is None:
        what = f"no entry of its config.json sets the number of layers in {', '.join(plan.layers)}"
        raise PlanError("cannot merge: 1 problem", [Problem(shown, what)])
    check = skeleton.check_loads(config, {job.name: job.shape for job in plan.jobs})
    if check.problems:
        headline = f"cannot merge: the layers do not make a {donor.skeleton.class_name}"
        raise PlanError(headline, list(check.problems))
    return replace(donor, config=config)
