"""What inputs that are merged themselves need of memory while they are read. Pure functions of plans.

A stage is merged in the thread that reads, one part at a time, while the arithmetic of whoever reads it goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dopkit.methods import FLOAT32
from dopkit.planning import Plan, Source
from dopkit.planning.adapters import making_bytes
from dopkit.planning.jobs import TensorJob
from dopkit.specs import DTYPES

Read = tuple[Source, str]


def reading_bytes(donor: Source, models: Sequence[Source], job: TensorJob) -> int:
    """An upper estimate of the memory that reading the inputs of a job takes beside them.

    Of every stage the part that was merged last and the one that is handed on, and what the one that needs most has at
    work; of every model that others read as well the part that was read last.
    """
    direct = list(_inputs(donor, models, job))
    held = {(source.ref.key, name): _held(source, name, job) for source, name in _all(direct)}
    return sum(held.values()) + max((_working(source, name) for source, name in direct), default=0)


def _inputs(donor: Source, models: Sequence[Source], job: TensorJob) -> Iterator[Read]:
    if job.base is not None:
        yield donor, job.base
    yield from ((models[one.model], one.name) for one in job.inputs)


def _of(plan: Plan, name: str) -> Iterator[Read]:
    yield from _inputs(plan.donor, plan.models, plan.by_name[name])


def _all(direct: Sequence[Read]) -> Iterator[Read]:
    """What is read, and what is read for that, down to what exists already; each once."""
    waiting, seen = list(direct), set()
    for source, name in waiting:
        if (source.ref.key, name) in seen:
            continue
        seen.add((source.ref.key, name))
        yield source, name
        if source.staged is not None:
            waiting += _of(source.staged.plan, name)
        elif source.adapted is not None and name not in source.adapted.whole:
            waiting.append((source.adapted.base, name))


def _held(source: Source, name: str, reader: TensorJob) -> int:
    if source.staged is not None:
        job = source.staged.plan.by_name[name]
        return 2 * _part(job) * DTYPES[job.dtype].size
    return 2 * _part(reader) * DTYPES[reader.dtype].size if source.remembered else 0


def _working(source: Source, name: str) -> int:
    """What is at work while a stage is merged, and in the stages that it reads meanwhile."""
    if source.adapted is not None and name not in source.adapted.whole:
        return _working(source.adapted.base, name)
    if source.staged is None:
        return 0
    plan = source.staged.plan
    job = plan.by_name[name]
    raw = FLOAT32 * _part(job)
    inner = max((_working(*read) for read in _of(plan, name)), default=0)
    return job.working_bytes + raw + making_bytes(plan.donor, plan.models, job) + inner


def _part(job: TensorJob) -> int:
    return job.numel * min(job.part_rows, job.rows) // max(1, job.rows)
