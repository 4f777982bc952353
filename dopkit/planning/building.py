"""From recipe, headers and roles to a plan, or to every reason why there is none. A pure function.

What must be looked at outside (free disk, memory, the output folder) comes in as numbers and problems.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dopkit import layout
from dopkit.errors import PlanError, Problem, count
from dopkit.planning import Continuation, Plan, matching, streaming
from dopkit.planning.buffers import STEPS, Buffers
from dopkit.planning.companions import attach
from dopkit.planning.making import make_jobs
from dopkit.planning.matching import Model
from dopkit.planning.parking import parked
from dopkit.planning.room import Room, needs, problems_of
from dopkit.planning.targets import Making
from dopkit.recipe import Recipe


@dataclass(frozen=True)
class Wanted:
    """What a merge writes beside the model, and what it goes on from."""

    steps: bool = False  # the models of earlier steps
    state: bool = False  # of every fold
    continues: Continuation | None = None
    stages: bool = False  # as models of their own, and read from there


def build(
    recipe: Recipe,
    donor: Model,
    models: Sequence[Model],
    room: Room,
    max_shard_size: int,
    seed: int | None = None,
    problems: Sequence[Problem] = (),
    stream: bool = False,
    wanted: Wanted | None = None,
    notes: Sequence[str] = (),
    companions: Sequence[Mapping[str, Model]] = (),
) -> Plan:
    """Make the plan of a pinned recipe whose models stand in merge order.

    ``problems`` and ``notes`` are those of opening the models; ``stream`` asks that nothing be downloaded; ``wanted``
    is what there is to write besides, and to go on from; ``companions`` are read beside each of the models. Raises
    PlanError with all problems.
    """
    wanted = wanted or Wanted()
    work = Making(recipe, donor, models, wanted.continues, problems=list(problems), notes=list(recipe.notes))
    for model in {model.source.ref.key: model for model in (donor, *models)}.values():
        work.problems += matching.own_problems(model)
        work.notes += model.source.notes
        if model.skeleton.fallback:
            work.notes.append(f"{model.source.ref.short}: roles are guessed from names ({model.skeleton.fallback})")
    work.notes += notes
    if donor.beside:
        work.notes.append(f"{donor.source.ref.short}: read as the {donor.skeleton.class_name} in it")
    if not donor.source.complete:
        what = "offline, so tokenizer and other side files that are not in the cache are left out"
        work.notes.append(f"{donor.source.ref.short}: {what}")
    if wanted.state and not recipe.method.grows:
        what = f"{recipe.merge_method} merges all models at once: it keeps no state to go on from"
        work.problems.append(Problem("", what, "Leave out --keep-state."))
    if wanted.stages and not recipe.stages:
        work.problems.append(Problem("", "the recipe has no stages to keep", "Leave out --keep-stages."))
    if recipe.parts and (wanted.steps or wanted.state):
        what = "layers put together from slices have no steps and no state to keep"
        work.problems.append(Problem("", what, "Leave out --save-steps, --keep-state and --tasks."))
    if not work.problems:
        make_jobs(work)
    beside = [model for own in companions for model in own.values()]
    if beside:
        work.jobs, more = attach(work.jobs, models, companions)
        work.problems += more
    if recipe.dtype and recipe.out_dtype and recipe.dtype not in ("float32", recipe.out_dtype):
        work.notes.append(f"arithmetic is in float32; `dtype: {recipe.dtype}` gives way to `out_dtype`")
    shards = layout.lay_out([(job.name, job.dtype, job.shape) for job in work.jobs], max_shard_size)
    by_name = {job.name: job for job in work.jobs}
    plan = Plan(
        recipe=work.recipe,
        seed=seed,
        donor=donor.source,
        models=tuple(model.source for model in models),
        jobs=tuple(by_name[tensor.name] for shard in shards for tensor in shard.tensors),
        shards=shards,
        dropped=tuple(work.dropped),
        notes=tuple(work.notes),
        max_shard_size=max_shard_size,
        memory_bytes=0,
        companions=tuple({name: model.source for name, model in own.items()} for own in companions if beside),
        keeps_steps=wanted.steps,
        keeps_state=wanted.state,
        continues=wanted.continues,
        keeps_stages=wanted.stages,
        heads=work.heads,
        layers=work.layers,
    )
    for buffers in STEPS:
        fitted = _fitted(plan, buffers, donor, models, beside, room, stream)
        if fitted.memory_bytes <= room.memory:
            break
    else:
        around = fitted.memory_bytes - needs(fitted, donor, models, room).job
        fitted = _fitted(parked(plan, room, around), STEPS[-1], donor, models, beside, room, stream)
    plan = fitted
    work.problems += problems_of(plan, room)
    if not work.problems and not plan.jobs:
        work.problems.append(Problem("", "there is nothing to merge: the base holds no tensors"))
    if work.problems:
        raise PlanError(f"cannot merge: {count(len(work.problems), 'problem')}", work.problems)
    return plan


def _fitted(
    plan: Plan,
    buffers: Buffers,
    donor: Model,
    models: Sequence[Model],
    beside: Sequence[Model],
    room: Room,
    stream: bool,
) -> Plan:
    """The plan with these buffers and blocks, and what it then needs."""
    if buffers.block_elements and not _adds_up_blocks(plan):
        plan = replace(plan, jobs=tuple(replace(job, block_elements=buffers.block_elements) for job in plan.jobs))
    need = needs(plan, donor, models, room)
    around = need.around(room, buffers)
    plan = replace(plan, program_bytes=room.program, buffers=buffers, memory_bytes=around + need.job)
    cache_disk = room.disk - plan.disk_bytes + room.written if room.shared_disk else room.cache_disk
    stream_room = streaming.StreamRoom(cache_disk, room.memory, room.memory_given)
    plan = streaming.decide(plan, (donor, *models, *beside), stream_room, stream)
    rest = room.memory - (plan.memory_bytes - need.job) - need.making
    return replace(plan, work_bytes=max(1, rest))


def _adds_up_blocks(plan: Plan) -> bool:
    """Whether something is summed block after block: other blocks would then round otherwise."""
    return plan.scale == "norm" or plan.recipe.method.measures(plan.recipe.parameters)
