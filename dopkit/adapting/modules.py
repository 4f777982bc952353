"""The loop: module by module, every adapter's factors read, merged, scaled, cut to a rank and written."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch

from dopkit.adapting.preparing import Prepared
from dopkit.checkpoints.joining import Joined, products
from dopkit.checkpoints.reading import bytes_of, torch_dtype
from dopkit.engine.scaling import Norms, number
from dopkit.errors import MergeError
from dopkit.linalg.factors import Factors, shortened
from dopkit.methods.fold import Context
from dopkit.progress import Progress
from dopkit.roles import Role
from dopkit.writer import ShardWriter

Record = dict[str, Any]


class Modules:
    """Merges the modules of a plan that ``writer`` does not have yet."""

    def __init__(self, prepared: Prepared, writer: ShardWriter, progress: Progress) -> None:
        self._prepared, self._plan = prepared, prepared.plan
        self._writer, self._progress = writer, progress
        self.scale = number(self._plan)  # what the merged task vector is multiplied by; measured in ``run``

    def run(self) -> tuple[float, ...]:
        """Write what is missing; the norms of all task vectors, if the scale needs them. Raises MergeError."""
        norms: tuple[float, ...] = ()
        if self._plan.scale == "norm":
            self._progress.stage("measuring")
            measured = self._measure()
            norms, self.scale = measured.tasks, measured.scale(self._plan.last_step)
        self._progress.stage("merging")
        missing = [one for one in self._prepared.modules if not {one.a, one.b} <= self._writer.done]
        sizes = {job.name: job.nbytes for job in self._plan.jobs}
        total = sum(sizes[name] for one in missing for name in (one.a, one.b))
        self._progress.begin(2 * len(missing), total, float(total))
        for joined in missing:
            self._progress.tensor(joined.tensor)
            self._write(joined)
            for name in (joined.a, joined.b):
                self._progress.advance(sizes[name], float(sizes[name]))
                self._progress.tensor_done(name)
        return norms

    def _merged(self, joined: Joined, record: Callable[[Record], None]) -> tuple[list[Factors], Factors]:
        """What every adapter adds to a module, and the merge of that, not scaled."""
        plan = self._plan
        given = products(joined, self._prepared.adapters)
        if plan.continues is not None and plan.continues.scale != 1:
            given[0] = given[0].scaled(1 / plan.continues.scale)
        way = self._prepared.ways[joined.module]
        # the factors of every layer have the output side first
        contexts = [
            Context(own, Role.LINEAR, step, record) for step, own in enumerate(way.parameters, start=plan.first_step)
        ]
        return given, way.merge(given, contexts)

    def _measure(self) -> Norms:
        """The norms over the whole model, from a pass of their own."""
        plan, squares, merged = self._plan, [0.0] * len(self._prepared.adapters), 0.0
        for joined in self._prepared.modules:
            given, result = self._merged(joined, lambda record: None)
            squares = [sum_ + one.squares() for sum_, one in zip(squares, given, strict=True)]
            merged += result.squares()
        tasks = [math.sqrt(max(0.0, one)) for one in squares]
        before = plan.continues.norms if plan.continues else ()
        norms = (*before, *tasks[1:]) if plan.continues else tuple(tasks)
        return Norms(norms, {plan.last_step: math.sqrt(max(0.0, merged))})

    def _write(self, joined: Joined) -> None:
        started, steps = time.monotonic(), list[Record]()
        _, result = self._merged(joined, steps.append)
        result = result.scaled(self.scale)
        if joined.rank < result.rank:
            ranks = {"rank": result.rank, "kept": joined.rank}
            result, cut = shortened(result, joined.rank)
            steps.append({**ranks, "energy": cut.energy, "lost": cut.lost})
        rule = self._prepared.ways[joined.module].shown(joined)
        record = {"rule": rule.name, "device": "cpu", "seconds": round(time.monotonic() - started, 4)}
        self._put(joined.a, result.a.reshape(joined.a_shape), record)
        self._put(joined.b, result.b.reshape(joined.b_shape), {**record, "steps": steps} if steps else record)

    def _put(self, name: str, tensor: torch.Tensor, record: Record) -> None:
        tensor = tensor.to(torch_dtype(self._plan.jobs[0].dtype))
        if not bool(torch.isfinite(tensor).all()):
            raise MergeError(f"{name} would hold values that are NaN or infinite")
        self._writer.write(name, 0, bytes_of(tensor.contiguous()))
        self._writer.complete(name, record)
