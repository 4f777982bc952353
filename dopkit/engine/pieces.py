"""One part of one tensor's merge as a piece of work for the crew: what it reads, computes and gives to be written.

Knows jobs and where their results go; not what else is in hand.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dopkit.device import Devices
from dopkit.engine import scaling
from dopkit.engine.announcing import Read, read_bytes
from dopkit.engine.blame import check_finite
from dopkit.engine.crew import Hand
from dopkit.engine.inputs import Inputs, device_of
from dopkit.engine.outputs import Outputs
from dopkit.engine.parking import ScratchPark
from dopkit.engine.parts import Parts
from dopkit.engine.scaling import squares
from dopkit.measure import peak_resident_bytes
from dopkit.methods import Cut
from dopkit.planning import TensorJob
from dopkit.planning.outputs import state_name
from dopkit.writer import TensorWriter

Record = dict[str, Any]
Rows = tuple[int, int]

# Matrices with a shorter side than this are decomposed side by side, each on one core; others in turn, on all cores.
ALONE_SIDE = 2048


@dataclass(frozen=True)
class Result:
    """Some bytes of a tensor that are to be written behind those before them."""

    writer: TensorWriter
    name: str
    tensor: torch.Tensor


class Piece:
    """A part of a job; an empty tensor has one without rows. ``following`` is what it takes its inputs from."""

    def __init__(
        self,
        inputs: Inputs,
        outputs: Outputs[TensorWriter],
        devices: Devices,
        job: TensorJob,
        index: int,
        rows: Rows | None,
        admit: Callable[[Piece], Callable[[], torch.Tensor]],
        scratch: Path | None = None,
    ) -> None:
        self.job, self.rows, self._index = job, rows, index
        self._inputs, self._outputs, self._admit = inputs, outputs, admit
        self.device = device_of(job, devices)
        self.reads = () if rows is None else tuple(reads(inputs, job, rows))
        self.raw_bytes = sum(map(read_bytes, self.reads))
        self.nbytes = job.held_bytes + self.raw_bytes
        self._scratch = scratch if job.parked else None
        self.alone = done_alone(job)
        self.first, self.last = index == 0, rows is None or rows[1] == job.rows
        self.share = 1.0 if rows is None else (rows[1] - rows[0]) / job.rows
        self.waits = outputs.waits(job)
        self.merged = dict.fromkeys(outputs.models, 0.0)  # and of what was merged
        self.seconds = 0.0
        self.steps: list[Record] = []
        # Sums of squares of the task vectors, where results wait for their scale.
        self.tasks = [0.0] * (len(inputs.models) - (1 if inputs.plan.continues else 0))

    def admitted(self) -> None:
        self._following = self._admit(self)

    def run(self, hand: Hand[Result]) -> None:
        """Raises MergeError, CheckpointError."""
        if self.rows is None:
            return
        started = time.monotonic()
        park = ScratchPark(self._scratch) if self._scratch else None
        following = partial(hand.shielded, self._following)
        # The method's code is imported in here, and an import must not be broken off.
        parts = hand.shielded(lambda: Parts(self._inputs, self.job, self.device, following, park))
        parts.measures = self.waits
        try:
            for result in self._results(parts, self.rows):
                hand.give(result.tensor.nbytes, result)
        finally:
            if park:
                park.forget()
        self.steps, self.tasks = parts.steps, parts.tasks
        self.seconds = time.monotonic() - started

    def _results(self, parts: Parts, rows: Rows) -> Iterator[Result]:
        written = self._outputs.folded(self.job)
        if self.waits:
            for step, base, merged in parts.merged(self._index, rows, self._outputs.models):
                yield Result(written[step], self.job.name, self._waiting(step, base, merged))
        else:
            for step, tensor in parts.results(self._index, rows, self._outputs.models):
                yield Result(written[step], self.job.name, tensor)
        if self._outputs.state is not None and self._outputs.state_names(self.job):
            for part, tensor in parts.packed().items():
                yield Result(self._outputs.state, state_name(self.job, part), tensor.to("cpu"))

    def _waiting(self, step: int, base: torch.Tensor | None, merged: torch.Tensor) -> torch.Tensor:
        """A result that waits for the scale of the whole model."""
        assert base is not None, "what is scaled has a base"
        self.merged[step] += squares(base, merged)
        result = merged.to("cpu")
        check_finite(self.job, result, self._inputs.of(self.job))
        # the next step may overwrite the state while this is being written
        return result.clone() if step != max(self.merged) and result.data_ptr() == merged.data_ptr() else result


def done_alone(job: TensorJob) -> bool:
    """Whether a part is merged with all cores, and nothing beside it; else with one."""
    return job.rule.cut is Cut.MATRICES and min(job.part_shape[-2:], default=0) >= ALONE_SIDE


def reads(inputs: Inputs, job: TensorJob, rows: Rows) -> Iterator[Read]:
    """All that a part needs, in order; no rows means the whole tensor."""
    for checkpoint, name in inputs.of(job):
        yield checkpoint, name, None if job.part_rows >= job.rows else rows


class Tally:
    """What the pieces of a job have measured, added up in their order: the job's record."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._steps: list[Record] = []
        self._tasks: list[float] = []
        self._merged: list[float] = []

    def add(self, piece: Piece) -> None:
        self._seconds += piece.seconds
        self._steps += piece.steps
        if piece.waits:
            self._tasks = _sums(self._tasks, piece.tasks)
            self._merged = _sums(self._merged, list(piece.merged.values()))

    def record(self, piece: Piece) -> Record:
        """For the journal; ``piece`` is the last one."""
        found: Record = {
            "rule": piece.job.rule.name,
            "device": piece.device.type,
            "seconds": round(self._seconds, 4),
            "peak": peak_resident_bytes(),
        }
        if self._steps:
            found["steps"] = self._steps
        if piece.waits:
            found |= {scaling.TASKS: self._tasks, scaling.MERGED: self._merged}
        return found


def _sums(total: list[float], more: list[float]) -> list[float]:
    return [one + other for one, other in zip(total, more, strict=True)] if total else list(more)
