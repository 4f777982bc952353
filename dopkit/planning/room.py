"""What a merge may use, what a plan needs of it, and the refusals where that is more. Pure functions.

The memory is that of the whole process: the program itself, the tensors in hand, and what waits before and behind them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dopkit.errors import Problem
from dopkit.methods import FLOAT32, Cut
from dopkit.planning import Plan, TensorJob
from dopkit.planning.adapters import making_bytes
from dopkit.planning.buffers import OVERHEAD_BYTES, Buffers
from dopkit.planning.matching import Model
from dopkit.planning.staging import reading_bytes
from dopkit.specs import DTYPES
from dopkit.units import round_up, show_size

TOGETHER_BYTES = 32_000_000  # of one block of all models: more are not in hand at once


@dataclass(frozen=True)
class Room:
    """What the machine has to offer, in bytes. ``written`` is what an unfinished run left that is still good."""

    disk: int
    cache_disk: int
    memory: int  # that the process may come to, with all that it holds already
    written: int = 0
    shared_disk: bool = False  # output and download cache lie on one disk
    memory_given: bool = False  # the memory is what the user allows, so all of it may be used
    shards_leave: bool = False  # a finished shard is uploaded and removed while the next one is made
    processes: int = 1  # that each need the memory of one; ``memory`` is the share of one
    program: int = 0  # that the process holds already
    device: int = 0  # memory of a device beside the host that a tensor may take; 0 where there is none
    device_float64: bool = True
    parks: bool = False  # whether matrices may lie on the disk beside the output while they are not needed


@dataclass(frozen=True)
class Needs:
    """What the jobs of a plan take of the host's memory, in bytes."""

    job: int  # the one that takes most, with what its inputs take to be made
    making: int  # what inputs take to be made, at most
    read: int  # the largest single read
    written: int  # the largest single write

    def around(self, room: Room, buffers: Buffers) -> int:
        """All but the job in hand."""
        return room.program + OVERHEAD_BYTES + buffers.read(self.read) + buffers.written(self.written)


def needs(plan: Plan, donor: Model, models: Sequence[Model], room: Room) -> Needs:
    """Of the plan's jobs as they are cut; ``models`` stand in merge order."""
    job = making = read = written = 0
    for one in plan.jobs:
        made = made_bytes(plan, one)
        reads = list(_reads(one, donor, models))
        together = sum(reads) if one.rule.cut is Cut.BLOCKS else 0  # blocks of all models, where they are not many
        together = together if together <= TOGETHER_BYTES else 0
        job = max(job, host_bytes(one, room) + made + together + steps_bytes(plan, one))
        making = max(making, made)
        read = max(read, *reads)
        written = max(written, *_writes(plan, one))
    return Needs(job, making, read, written)


def steps_bytes(plan: Plan, job: TensorJob) -> int:
    """What results of earlier steps take beside a job, where they are written as well.

    They are copied, as the next step may change them: one is on its way to the disk, another waits for that.
    """
    return 2 * max(_writes(plan, job)) if len(plan.written_steps) > 1 else 0


def made_bytes(plan: Plan, job: TensorJob) -> int:
    """What the inputs of a job take beside it to be made."""
    return making_bytes(plan.donor, plan.models, job) + reading_bytes(plan.donor, plan.models, job)


def host_bytes(job: TensorJob, room: Room) -> int:
    """What a job takes of the host: on a device of its own, one part as it is read and one as it is written."""
    if on_device(job, room):
        return 2 * DTYPES[job.working_dtype].size * math.prod(job.part_shape)
    return job.held_bytes


def on_device(job: TensorJob, room: Room) -> bool:
    """Whether it is merged on a device beside the host. Whether it is parked has no say in that."""
    return job.working_bytes <= room.device and (room.device_float64 or not _wants_float64(job))


def _wants_float64(job: TensorJob) -> bool:
    return job.rule.float64 or job.dtype == "F64"


def _reads(job: TensorJob, donor: Model, models: Sequence[Model]) -> Iterator[int]:
    """The sizes of one part of each input, as it lies in its file."""
    share = min(job.part_rows, job.rows) / max(1, job.rows)
    yield 0
    if job.base is not None:
        yield int(donor.specs[job.base].nbytes * share)
    for one in job.inputs:
        yield int(models[one.model].specs[one.name].nbytes * share)
        yield from (FLOAT32 * math.prod(job.part_shape) for _ in one.companions)


def _writes(plan: Plan, job: TensorJob) -> Iterator[int]:
    """The sizes of one part of all that is written; what waits for its scale is not rounded yet."""
    waits = plan.scale == "norm" and job.rule.fold is not None
    yield DTYPES[job.working_dtype if waits else job.dtype].size * math.prod(job.part_shape)
    if plan.keeps_state and job.rule.fold is not None:
        for dtype, shape in job.rule.state(job.part_shape).values():
            yield DTYPES[dtype].size * math.prod(shape)


def problems_of(plan: Plan, room: Room) -> list[Problem]:
    """Everything that is too little: disk for the output and for downloads, memory."""
    problems = disk_problems(plan, room)
    if plan.jobs and plan.memory_bytes > room.memory:  # without any, something else is wrong
        largest = max(plan.jobs, key=lambda job: host_bytes(job, room))
        problems.append(too_little_memory(f"the largest need is for {largest.name}", plan.memory_bytes, room))
    return problems


def disk_problems(plan: Plan, room: Room) -> list[Problem]:
    problems = []
    leaving = plan.output_bytes - sum(sorted((shard.size for shard in plan.shards), reverse=True)[:2])
    output = plan.disk_bytes - (leaving if room.shards_leave else 0) - room.written
    state = plan.continues.download_bytes if plan.continues else 0
    download = state if plan.streamed else plan.download_bytes
    if room.shared_disk:
        output, download = output + download, 0
    if output > room.disk:
        problems.append(
            too_little("disk space for the output", output, room.disk, "Free some, or write elsewhere with -o.")
        )
    if download > room.cache_disk:
        problems.append(too_little("disk space for downloads", download, room.cache_disk, "Free some, or set HF_HOME."))
    return problems


def too_little_memory(what: str, need: int, room: Room) -> Problem:
    """Says what would do; ``need`` is that of one process."""
    number, have = room.processes, room.processes * room.memory
    enough_for = have // need
    enough = round_up(number * need)
    if number > 1 and enough_for:
        remedy = (
            f"Each of the {number} processes on this machine needs its own: start {enough_for}, or use a larger one."
        )
    elif room.memory_given:
        remedy = f"`--max-memory {enough}` would do, where there is so much."
    else:
        remedy = f"{enough} would do: free some, or use a larger machine."
    of_it = f" ({show_size(number * room.program)} of it by the program itself)" if room.program else ""
    return too_little(f"memory ({what})", number * need, have, remedy, of_it)


def too_little(what: str, need: int, have: int, remedy: str, of_it: str = "") -> Problem:
    return Problem("", f"too little {what}: {show_size(need)} needed{of_it}, {show_size(have)} there", remedy)
