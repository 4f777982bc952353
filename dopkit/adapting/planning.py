"""The plan of an adapter that is made of others: its tensors, the one file they go to, what that needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dopkit import layout
from dopkit.checkpoints import AdapterCheckpoint
from dopkit.checkpoints.files import ADAPTER
from dopkit.checkpoints.joining import Joined
from dopkit.methods import Cut, Rule
from dopkit.methods.costs import copies, elementwise_effort
from dopkit.opening import source_of
from dopkit.planning import Plan, TensorJob
from dopkit.planning.building import OVERHEAD_BYTES
from dopkit.recipe import Recipe
from dopkit.roles import Role
from dopkit.specs import DTYPES

JOINED = Rule("factors joined", None, Cut.WHOLE, False, copies(4), elementwise_effort)
CUT = Rule("factors cut", None, Cut.WHOLE, False, copies(12), elementwise_effort, float64=True)

_NAMES = {dtype.torch: name for name, dtype in DTYPES.items()}


def planned(recipe: Recipe, adapters: Sequence[AdapterCheckpoint], modules: Sequence[Joined], seed: int | None) -> Plan:
    dtype = _NAMES[recipe.out_dtype or recipe.dtype or "float32"]
    base = adapters[0].base
    jobs = {}
    for joined in modules:
        rule = CUT if joined.rank < joined.together else JOINED
        role = Role.EMBEDDING if joined.embedding else Role.CONV1D if joined.outputs_last else Role.LINEAR
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
        dropped=(),
        notes=tuple(dict.fromkeys(note for source in sources for note in source.notes)),
        max_shard_size=whole,
        memory_bytes=max(job.working_bytes for job in jobs.values()) + OVERHEAD_BYTES,
    )
