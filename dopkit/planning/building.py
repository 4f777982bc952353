"""From recipe, headers and roles to a plan, or to every reason why there is none. A pure function.

What must be looked at outside (free disk, memory, the output folder) comes in as numbers and problems.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dopkit import layout
from dopkit.errors import PlanError, Problem, count
from dopkit.planning import Continuation, Plan, Source, TensorJob, matching, streaming
from dopkit.planning.adapters import making_bytes
from dopkit.planning.companions import attach
from dopkit.planning.making import make_jobs
from dopkit.planning.matching import Model
from dopkit.planning.staging import reading_bytes
from dopkit.planning.targets import Making
from dopkit.recipe import Recipe
from dopkit.units import show_size

READ_AHEAD_BYTES = 32_000_000  # raw tensors waiting for their turn, besides the one in hand
WRITE_BEHIND_BYTES = 32_000_000  # finished blocks waiting for the disk
# What the program takes besides when it starts to merge: code pages, buffers of libraries. Measured, not derived.
OVERHEAD_BYTES = 80_000_000
_AROUND_A_JOB = READ_AHEAD_BYTES + WRITE_BEHIND_BYTES + OVERHEAD_BYTES


@dataclass(frozen=True)
class Room:
    """What the machine has to offer, in bytes. ``written`` is what an unfinished run left that is still good."""

    disk: int
    cache_disk: int
    memory: int
    written: int = 0
    shared_disk: bool = False  # output and download cache lie on one disk
    memory_given: bool = False  # the memory is what the user allows, so all of it may be used
    shards_leave: bool = False  # a finished shard is uploaded and removed while the next one is made
    processes: int = 1  # that each need the memory of one; ``memory`` is the share of one


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
    sources = tuple(model.source for model in models)
    shards = layout.lay_out([(job.name, job.dtype, job.shape) for job in work.jobs], max_shard_size)
    by_name = {job.name: job for job in work.jobs}
    plan = Plan(
        recipe=work.recipe,
        seed=seed,
        donor=donor.source,
        models=sources,
        jobs=tuple(by_name[tensor.name] for shard in shards for tensor in shard.tensors),
        shards=shards,
        dropped=tuple(work.dropped),
        notes=tuple(work.notes),
        max_shard_size=max_shard_size,
        memory_bytes=max((_job_bytes(donor.source, sources, job) for job in work.jobs), default=0) + _AROUND_A_JOB,
        companions=tuple({name: model.source for name, model in own.items()} for own in companions if beside),
        keeps_steps=wanted.steps,
        keeps_state=wanted.state,
        continues=wanted.continues,
        keeps_stages=wanted.stages,
        heads=work.heads,
        layers=work.layers,
    )
    cache_disk = room.disk - plan.disk_bytes + room.written if room.shared_disk else room.cache_disk
    stream_room = streaming.StreamRoom(cache_disk, room.memory, room.memory_given)
    plan = streaming.decide(plan, (donor, *models, *beside), stream_room, stream)
    work.problems += _room_problems(plan, room)
    if not work.problems and not plan.jobs:
        work.problems.append(Problem("", "there is nothing to merge: the base holds no tensors"))
    if work.problems:
        raise PlanError(f"cannot merge: {count(len(work.problems), 'problem')}", work.problems)
    return plan


def _job_bytes(donor: Source, sources: Sequence[Source], job: TensorJob) -> int:
    return job.working_bytes + making_bytes(donor, sources, job) + reading_bytes(donor, sources, job)


def _room_problems(plan: Plan, room: Room) -> list[Problem]:
    problems = []
    largest_two = sum(sorted((shard.size for shard in plan.shards), reverse=True)[:2])
    output = (largest_two if room.shards_leave else plan.disk_bytes) - room.written
    state = plan.continues.download_bytes if plan.continues else 0
    download = state if plan.streamed else plan.download_bytes
    if room.shared_disk:
        output, download = output + download, 0
    if output > room.disk:
        problems.append(
            _too_little("disk space for the output", output, room.disk, "Free some, or write elsewhere with -o.")
        )
    if download > room.cache_disk:
        problems.append(
            _too_little("disk space for downloads", download, room.cache_disk, "Free some, or set HF_HOME.")
        )
    if plan.memory_bytes > room.memory:
        largest = max(plan.jobs, key=lambda job: job.working_bytes)
        what = "memory (the largest need is for " + largest.name + ")"
        need, have = room.processes * plan.memory_bytes, room.processes * room.memory
        problems.append(_too_little(what, need, have, _memory_remedy(have // plan.memory_bytes, room.processes)))
    return problems


def _memory_remedy(enough_for: int, processes: int) -> str:
    if processes == 1 or not enough_for:
        return "Raise --max-memory, or use a larger machine."
    return f"Each of the {processes} processes on this machine needs its own: start {enough_for}, or use a larger one."


def _too_little(what: str, need: int, have: int, remedy: str) -> Problem:
    return Problem("", f"too little {what}: {show_size(need)} needed, {show_size(have)} there", remedy)
