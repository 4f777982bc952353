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
from dopkit.opening import look_at_all, merged_twice, open_all, pin_tokenizer
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
    donor_model: Model  # with the config of the result where slices give that other layers

    @property
    def distinct(self) -> list[Checkpoint]:
        """Each model once, the donor first."""
        return list(dict.fromkeys([self.donor, *self.models]))


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
        problems += obstacles
        for checkpoint in opened.values():
            stack.callback(checkpoint.close)
        if len(opened) < len(recipe.refs):  # without every header there is nothing to compare
            raise PlanError(f"cannot merge: {count(len(problems), 'problem')}", problems)
        refs = {ref: checkpoint.ref for ref, checkpoint in opened.items()}
        recipe = recipe.with_refs({**refs, **pin_tokenizer(recipe, pins or {})})
        problems += merged_twice(recipe)
        checkpoints = {checkpoint.ref: checkpoint for checkpoint in opened.values()}
        aligned = vocabulary.align(recipe, checkpoints, look_at_all(checkpoints, recipe))
        models, problems = aligned.models, problems + aligned.problems
        in_order = [entry.model for entry in recipe.models]
        planned = [models[ref] for ref in in_order]
        donor, notes = models[recipe.donor], aligned.notes
        plan = build(recipe, donor, planned, room, max_shard_size, seed, problems, stream, wanted, notes)
        donor = _with_layers(donor, plan)
        if plan.streamed:
            checkpoints = {ref: checkpoint.streamed() for ref, checkpoint in checkpoints.items()}
            for checkpoint in checkpoints.values():
                stack.callback(checkpoint.close)
        checkpoints = aligned.wrap(checkpoints)
        for checkpoint in checkpoints.values():
            stack.callback(checkpoint.close)
        in_hand = [checkpoints[ref] for ref in in_order]
        yield Sources(plan, checkpoints[recipe.donor], in_hand, donor)


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
