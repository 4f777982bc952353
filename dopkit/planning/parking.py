"""Which matrices are merged with a part of them on the disk, as there is too little memory. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from dopkit.planning import Plan, TensorJob
from dopkit.planning.room import Room, host_bytes, made_bytes, on_device, steps_bytes
from dopkit.units import show_size

# A parked job takes more than a third of what it takes otherwise, so at most two of the largest are in hand at once.
_AT_ONCE = 2


def parked(plan: Plan, room: Room, around: int) -> Plan:
    """The plan with those jobs parked that need more than there is, ``around`` being what is taken beside a job.

    No byte of the result depends on it.
    """
    small = {job.name for job in _large(plan, room, room.memory - around)}
    if not small:
        return plan
    jobs = tuple(replace(job, parked=True) if job.name in small else job for job in plan.jobs)
    largest = max(job.working_bytes for job in jobs if job.parked)
    matrices = "1 matrix needs" if len(small) == 1 else f"{len(small)} matrices need"
    what = (
        f"{matrices} more memory than there is (up to {show_size(largest)}): a part of that lies on the disk meanwhile"
    )
    scratch = room.processes * _AT_ONCE * largest
    return replace(plan, jobs=jobs, scratch_bytes=scratch, notes=(*plan.notes, what))


def _large(plan: Plan, room: Room, rest: int) -> Iterator[TensorJob]:
    for job in plan.jobs:
        shrinks = room.parks and job.rule.least_bytes is not None and not on_device(job, room)
        if shrinks and host_bytes(job, room) + made_bytes(plan, job) + steps_bytes(plan, job) > rest:
            yield job
