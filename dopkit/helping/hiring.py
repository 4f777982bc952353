"""Workers for a merge: what they are told, what each needs, and how they show that they share the output folder."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from dopkit.cluster import Cluster, Needs
from dopkit.cluster.crew import Crew, Fleet, Terms
from dopkit.cluster.outbox import HELD_BYTES
from dopkit.engine.companions import Sizes
from dopkit.helping.hired import Hired, Order
from dopkit.limits import MemoryLimit
from dopkit.planning.building import Wanted
from dopkit.planning.streaming import LEAST_STREAM_BYTES, STREAM_OVERHEAD_BYTES
from dopkit.preparing import Prepared
from dopkit.progress import Progress
from dopkit.writer import Journal, ShardWriter, write_text

_TOKENS = "cluster.*.token"


def crew_of(
    cluster: Cluster,
    prepared: Prepared,
    limit: MemoryLimit,
    journal: Journal,
    writers: Mapping[str, ShardWriter],
    progress: Progress,
    sizes: Sizes,
) -> Crew:
    """Those who do the jobs of an accepted plan. ``limit`` is for all workers of a machine together."""

    @contextmanager
    def fleet() -> Iterator[Fleet]:
        order = _order(prepared, limit, sizes)
        write_text(order.folder / order.token, order.token)
        try:
            with cluster.open(Hired, order, _needs(prepared, order, limit)) as fleet:
                yield fleet
        finally:
            (order.folder / order.token).unlink(missing_ok=True)

    return Crew(Terms(prepared.devices.engine, prepared.fingerprint), fleet, journal, writers, progress)


def forget_tokens(folder: Path) -> None:
    """Remove what a run that was killed left of this."""
    for path in folder.glob(_TOKENS):
        path.unlink(missing_ok=True)


def _order(prepared: Prepared, limit: MemoryLimit, sizes: Sizes) -> Order:
    made = prepared.plan
    # A machine that lacks the models and has no disk for them streams, whatever this one does.
    streaming = 0 if made.streamed else LEAST_STREAM_BYTES + STREAM_OVERHEAD_BYTES
    return Order(
        recipe=made.recipe,
        folder=prepared.output.partial.absolute(),
        token=_TOKENS.replace("*", secrets.token_hex(8)),
        wanted=Wanted(made.keeps_steps, made.keeps_state, None, made.keeps_stages),
        device=prepared.devices.main.type,
        threads=torch.get_num_threads(),
        memory=made.memory_bytes - made.program_bytes + streaming,
        limit=MemoryLimit(device=limit.device, kind=limit.kind),
        max_shard_size=made.max_shard_size,
        stream=made.streamed,
        sizes=sizes,
    )


def _needs(prepared: Prepared, order: Order, limit: MemoryLimit) -> Needs:
    gpus = int(prepared.devices.main.type == "cuda")
    memory = prepared.plan.program_bytes + order.memory + HELD_BYTES
    return Needs(order.threads, memory, gpus, limit.host)
