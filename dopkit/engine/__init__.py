"""The loop: tensor outside, model inside. Reads, folds, casts once, writes.

Knows the plan, the sources and the writers; a method only as a Fold or a Joint. Runs in one process on one device, with
the CPU for what does not fit there. Of other processes that do other jobs of the plan it knows nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from dopkit.checkpoints import Checkpoint
from dopkit.device import Devices
from dopkit.engine import scaling
from dopkit.engine.announcing import Read, announce, requests
from dopkit.engine.blame import check_finite
from dopkit.engine.companions import Companions
from dopkit.engine.outputs import Outputs, Sink
from dopkit.engine.parts import Inputs, Parts, device_of
from dopkit.engine.pipes import ReadAhead, WriteBehind
from dopkit.engine.scaling import squares
from dopkit.measure import peak_resident_bytes
from dopkit.planning import Plan, TensorJob
from dopkit.planning.outputs import state_name
from dopkit.progress import Progress
from dopkit.writer import TensorWriter

Record = dict[str, Any]


class Engine:
    """Runs jobs of one plan.

    ``state`` holds the state of the folds that the merge goes on from, if the plan reads it.
    """

    def __init__(
        self,
        plan: Plan,
        donor: Checkpoint,
        models: Sequence[Checkpoint],
        outputs: Outputs[TensorWriter],
        devices: Devices,
        progress: Progress,
        state: Checkpoint | None = None,
        companions: Companions | None = None,
    ) -> None:
        self._plan = plan
        self._inputs = Inputs(plan, donor, models, state, companions)
        self._outputs = outputs
        self._devices = devices
        self._progress = progress

    def run(self, jobs: Sequence[TensorJob]) -> None:
        """Fold these tensors. Raises MergeError, OutputError, CheckpointError; what is done stays journaled."""
        self._progress.begin(len(jobs), sum(job.nbytes for job in jobs), sum(job.effort for job in jobs))
        announce(self._reads(jobs), self._plan.stream_bytes)
        ahead = ReadAhead(requests(self._reads(jobs)), self._plan.buffers.ahead)
        behind = WriteBehind(self._plan.buffers.behind)
        try:
            for job in jobs:
                self._progress.tensor(job.name)
                _Work(self, job, ahead, behind).run()
        except BaseException:
            # What was handed over is good and worth keeping; the error in hand is the one to tell.
            _quietly_close(behind)
            beside = [checkpoint for own in self._inputs.companions.checkpoints for checkpoint in own.values()]
            for checkpoint in (self._inputs.donor, *self._inputs.models, *beside):
                checkpoint.close()  # a read under way must not hold us up
            raise
        else:
            behind.close()
        finally:
            ahead.close()

    def _reads(self, jobs: Iterable[TensorJob]) -> Iterator[Read]:
        """All that is read, in order; no rows means the whole tensor."""
        for job in jobs:
            for rows in job.parts():
                for checkpoint, name in self._inputs.of(job):
                    yield checkpoint, name, None if job.part_rows >= job.rows else rows

    def _complete(self, job: TensorJob, record: Record) -> None:
        if self._outputs.state is not None:
            for name in self._outputs.state_names(job):
                self._outputs.state.complete(name, {})
        for step, writer in self._outputs.folded(job).items():
            writer.complete(job.name, record if step == self._plan.last_step else {})
        self._progress.tensor_done(job.name)


class _Work:
    """One job in hand."""

    def __init__(self, engine: Engine, job: TensorJob, ahead: ReadAhead, behind: WriteBehind) -> None:
        self._engine, self._job, self._behind = engine, job, behind
        self._plan, self._outputs = engine._plan, engine._outputs
        self._device = device_of(job, engine._devices)
        self._parts = Parts(engine._inputs, job, self._device, ahead.__next__)
        self._sink = Sink(behind)
        self._waits = self._parts.measures = self._outputs.waits(job)
        self._merged = dict.fromkeys(self._outputs.models, 0.0)

    def run(self) -> None:
        started, job = time.monotonic(), self._job
        for index, rows in enumerate(job.parts()):
            self._merge(index, rows)
            share = (rows[1] - rows[0]) / job.rows
            self._engine._progress.advance(int(job.nbytes * share), job.effort * share)
        record: Record = {
            "rule": job.rule.name,
            "device": self._device.type,
            "seconds": round(time.monotonic() - started, 4),
            "peak": peak_resident_bytes(),
        }
        if self._parts.steps:
            record["steps"] = self._parts.steps
        if self._waits:
            record |= {scaling.TASKS: self._parts.tasks, scaling.MERGED: list(self._merged.values())}
        self._behind.put(0, partial(self._engine._complete, job, record))

    def _merge(self, index: int, rows: tuple[int, int]) -> None:
        """One part of the tensor; what is to be written goes on its way."""
        for step, base, merged in self._parts.merged(index, rows, self._outputs.models):
            self._write(step, base, merged)
        if self._outputs.state is not None and self._outputs.state_names(self._job):
            for part, tensor in self._parts.packed().items():
                self._sink.put(self._outputs.state, state_name(self._job, part), tensor.to("cpu"))

    def _write(self, step: int, base: torch.Tensor | None, merged: torch.Tensor) -> None:
        """The result after a step, scaled if that can be done now."""
        if self._waits:
            assert base is not None, "what is scaled has a base"
            self._merged[step] += squares(base, merged)
            result = merged.to("cpu")
        else:
            result = self._parts.finished(base, merged)
        check_finite(self._job, result, self._engine._inputs.of(self._job))
        if step != self._plan.last_step and result.data_ptr() == merged.data_ptr():
            result = result.clone()  # the next step may overwrite the state while this is being written
        self._sink.put(self._outputs.folded(self._job)[step], self._job.name, result)


def _quietly_close(behind: WriteBehind) -> None:
    try:
        behind.close()
    except BaseException:
        return
