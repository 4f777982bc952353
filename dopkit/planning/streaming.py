"""Whether the weights that are not here are downloaded or streamed, and what streaming needs. Pure functions.

Streamed weights are read over the network while they are merged, and never stored.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from dopkit.planning import Plan, Source
from dopkit.planning.matching import Model
from dopkit.specs import TensorSpec
from dopkit.units import show_size

# Bytes held ahead of their turn: by itself, when memory is short, and at most when the user says how much to use.
# The more, the fewer requests.
STREAM_BYTES = 72_000_000
LEAST_STREAM_BYTES = 16_000_000
MOST_STREAM_BYTES = 2_000_000_000
STREAM_OVERHEAD_BYTES = 20_000_000  # of threads and connections; measured

_Needed = dict[tuple[str, ...], dict[str, int]]  # bytes of a source's tensors, by its key


@dataclass(frozen=True)
class StreamRoom:
    """What decides about streaming, in bytes."""

    disk: int  # for downloads
    memory: int
    memory_given: bool  # by the user


def decide(plan: Plan, models: Iterable[Model], room: StreamRoom, wanted: bool) -> Plan:
    """The plan, streamed if that is ``wanted`` or if its downloads do not fit on the disk.

    Of a streamed source only those tensors are fetched that are read, and they need no disk.
    """
    by_key = {model.source.ref.key: model for model in models}
    if not any(part.missing for model in by_key.values() for part in model.source.parts):
        return plan  # nothing to download
    notes = plan.notes
    if not wanted:
        if plan.download_bytes <= room.disk:
            return plan
        what = f"{show_size(plan.download_bytes)} of downloads do not fit where there is {show_size(max(0, room.disk))}"
        notes = (*notes, f"{what}, so the weights are streamed")
    pickled = [model for model in _real(by_key.values()) if model.source.ref.repo and _is_pickled(model)]
    kept = ".bin files cannot be streamed, so they stay in the cache"
    notes += tuple(f"{model.source.ref.short}: {kept}" for model in pickled)
    needed: _Needed = {}
    _need(plan, by_key.values(), None, needed)

    def streamed(source: Source) -> Source:
        adapted = source.adapted and replace(source.adapted, base=streamed(source.adapted.base))
        staged = source.staged
        if staged is not None:
            inner = replace(
                staged.plan, donor=streamed(staged.plan.donor), models=tuple(map(streamed, staged.plan.models))
            )
            staged = replace(staged, plan=inner)
        nbytes = sum(needed.get(source.ref.key, {}).values())
        return replace(source, download_bytes=nbytes, adapted=adapted, staged=staged)

    def twice(source: Source) -> Source:
        """A companion that is measured before it is merged with is read once for either."""
        measured = plan.recipe.method.measures(plan.recipe.parameters)
        return replace(source, download_bytes=source.download_bytes * (2 if measured else 1))

    def again(donor: Source) -> Source:
        """The base is read a second time for results that wait for the scale of the whole model."""
        waiting = [job.base for job in plan.jobs if plan.scale == "norm" and job.rule.fold]
        own = needed.get(donor.ref.key, {})
        return replace(donor, download_bytes=donor.download_bytes + sum(own.get(name or "", 0) for name in waiting))

    stream_bytes = _held_ahead(plan, room)
    return replace(
        plan,
        stream_bytes=stream_bytes,
        donor=again(streamed(plan.donor)),
        models=tuple(map(streamed, plan.models)),
        companions=tuple({name: twice(streamed(source)) for name, source in own.items()} for own in plan.companions),
        notes=notes,
        memory_bytes=plan.memory_bytes + stream_bytes + STREAM_OVERHEAD_BYTES,
    )


def _held_ahead(plan: Plan, room: StreamRoom) -> int:
    spare = room.memory - plan.memory_bytes - STREAM_OVERHEAD_BYTES
    most = MOST_STREAM_BYTES if room.memory_given else STREAM_BYTES
    return max(LEAST_STREAM_BYTES, min(most, spare))


def _is_pickled(model: Model) -> bool:
    return any(spec.offset < 0 for spec in model.specs.values())


def _real(models: Iterable[Model]) -> Iterator[Model]:
    """The models that exist already: those of the stages instead of them; each once."""
    waiting, seen = list(models), set()
    for model in waiting:
        if model.source.staged is not None:
            waiting += model.source.staged.models
        elif model.source.ref.key not in seen:
            seen.add(model.source.ref.key)
            yield model


def _need(plan: Plan, models: Iterable[Model], wanted: Collection[str] | None, found: _Needed) -> None:
    """Add the bytes of the tensors that are read of each source and are not here, by source and tensor.

    ``wanted`` are the tensors of the plan's result that are made; None for all of it. A part that several models stand
    on is read once for all of them.
    """
    for model in models:
        _need_of(model.source, model.specs, set(_names_read(plan, model, wanted)), found)


def _need_of(source: Source, specs: Mapping[str, TensorSpec], names: Collection[str], found: _Needed) -> None:
    adapted = source.adapted
    if source.staged is not None:
        _need(source.staged.plan, source.staged.models, names, found)
        return
    if adapted is not None:
        _need_of(adapted.base, specs, [name for name in names if name not in adapted.whole], found)
    for name in names:
        if adapted is not None and source.missing:
            found.setdefault(source.ref.key, {})[name] = adapted.factors.get(name, 0)
        elif adapted is None and specs[name].file in source.missing:
            found.setdefault(source.ref.key, {})[name] = specs[name].nbytes


def _names_read(plan: Plan, model: Model, wanted: Collection[str] | None) -> Iterator[str]:
    key = model.source.ref.key
    for job in plan.jobs:
        if wanted is not None and job.name not in wanted:
            continue
        if job.base is not None and plan.donor.ref.key == key:
            yield job.base
        for one in job.inputs:
            if plan.models[one.model].ref.key == key:
                yield one.name
            for part, name in zip(job.rule.companions, one.companions, strict=False):
                if plan.companions[one.model][part].ref.key == key:
                    yield name
    for head in plan.heads:
        if head.ref.key == key:
            yield from (spec.name for spec in head.tensors)
    for dropped in plan.dropped:  # compared with their twins
        if dropped.twin is not None and dropped.ref.key == key:
            yield from (dropped.name, dropped.twin)
