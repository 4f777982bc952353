"""The plan of an adapter that is made of others: its tensors, the one file they go to, what that needs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from dopkit import layout
from dopkit.adapting.ways import Way
from dopkit.checkpoints import AdapterCheckpoint
from dopkit.checkpoints.files import ADAPTER
from dopkit.checkpoints.joining import Joined
from dopkit.looking import source_of
from dopkit.methods import FLOAT32
from dopkit.planning import Continuation, Dropped, Plan, TensorJob
from dopkit.planning.buffers import OVERHEAD_BYTES
from dopkit.recipe import Recipe
from dopkit.specs import DTYPES

_NAMES = {dtype.torch: name for name, dtype in DTYPES.items()}
_FLOAT64 = 8  # bytes


def planned(
    recipe: Recipe,
    adapters: Sequence[AdapterCheckpoint],
    modules: Sequence[Joined],
    ways: Mapping[str, Way | None],
    seed: int | None,
    before: Continuation | None = None,
    program: int = 0,
) -> Plan:
    """What is made of every module that has a way; the others are left out by name.

    ``program`` is the memory in bytes that the process holds already.
    """
    dtype = _NAMES[recipe.out_dtype or recipe.dtype or "float32"]
    base = adapters[0].base
    jobs: dict[str, TensorJob] = {}
    dropped: list[Dropped] = []
    memory = 0
    for joined in modules:
        way = ways[joined.module]
        if way is None:
            dropped += _left_in_the_base(joined, adapters)
            continue
        rule, role = way.shown(joined), base.names.role(joined.tensor)
        memory = max(memory, working_bytes(joined, way))
        for name, shape in ((joined.a, joined.a_shape), (joined.b, joined.b_shape)):
            jobs[name] = TensorJob(name, joined.tensor, role, rule, dtype, shape, (), None, name)
    tensors = [(job.name, job.dtype, job.shape) for job in jobs.values()]
    # PEFT reads one file, whatever its size
    whole = max(1, sum(job.nbytes for job in jobs.values()))
    shards = [replace(shard, file=ADAPTER[0][0]) for shard in layout.lay_out(tensors, whole)]
    sources = tuple(replace(source_of(adapter), adapted=None) for adapter in adapters)
    return Plan(
        recipe=recipe,
        seed=seed,
        donor=replace(source_of(base), download_bytes=0, missing=frozenset()),  # nothing of it is read
        models=sources,
        jobs=tuple(jobs[tensor.name] for shard in shards for tensor in shard.tensors),
        shards=tuple(shards),
        dropped=tuple(dropped),
        notes=tuple(dict.fromkeys((*recipe.notes, *(note for source in sources for note in source.notes)))),
        max_shard_size=whole,
        memory_bytes=program + memory + OVERHEAD_BYTES,
        program_bytes=program,
        work_bytes=memory,
        continues=before,
    )


def working_bytes(joined: Joined, way: Way) -> int:
    """Upper estimate for one module: the factors, and in float64 their bases and some matrices of the ranks' size."""
    sides = joined.b_shape[0] + math.prod(joined.a_shape[1:])
    factors = sides * joined.together * FLOAT32
    if way.weights is not None and joined.rank == joined.together:
        return 4 * factors
    return 3 * factors + _FLOAT64 * (4 * sides * joined.together + 40 * joined.together**2)


def _left_in_the_base(joined: Joined, adapters: Sequence[AdapterCheckpoint]) -> Iterator[Dropped]:
    for index, product in joined.pieces:
        for factor in product.tensors:
            yield Dropped(adapters[index].ref, factor, "other: base")
