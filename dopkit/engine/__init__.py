"""The loop: tensor outside, model inside. Reads, folds, casts once, writes.

Knows the plan, the sources and the writers; a method only as a Fold or a Joint. Runs in one process on one device, with
the CPU for what does not fit there; on a CPU with several parts of tensors in hand, whose results are written in the
order of the plan. Of other processes that do other jobs of the plan it knows nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dopkit.checkpoints import Checkpoint
from dopkit.device import Devices
from dopkit.engine.announcing import Read, announce, requests
from dopkit.engine.companions import Companions
from dopkit.engine.crew import Crew
from dopkit.engine.inputs import Inputs
from dopkit.engine.outputs import Outputs, Sink
from dopkit.engine.parking import freed_at_once
from dopkit.engine.pieces import Piece, Result, Tally, reads
from dopkit.engine.pipes import ReadAhead, WriteBehind
from dopkit.linalg.precision import full_float32
from dopkit.methods import Cut
from dopkit.planning import Plan, TensorJob
from dopkit.progress import Progress
from dopkit.writer import TensorWriter

Record = dict[str, Any]
_KEPT = 3  # times what is in use, held by glibc
_LEAST_BUDGET = 64_000_000  # for pieces in hand, where the plan says nothing: a few blocks of what is done by elements


class Engine:
    """Runs jobs of one plan.

    ``state`` holds the state of the folds that the merge goes on from, if the plan reads it. ``hands`` are the parts of
    tensors that are merged at the same time, by default as many as torch has threads; it has no part in the result.
    ``scratch`` is a folder for what parked jobs do not need at the moment.
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
        hands: int | None = None,
        scratch: Path | None = None,
    ) -> None:
        self._plan = plan
        self._inputs = Inputs(plan, donor, models, state, companions)
        self._outputs = outputs
        self._devices = devices
        self._progress = progress
        # Elsewhere than on the CPU, order on the device is the device's business, and so are the CPU's threads.
        on_cpu = devices.main.type == "cpu"
        self._cores = torch.get_num_threads() if on_cpu else None
        self._hands = hands or self._cores or 1
        self._scratch = scratch

    @full_float32()
    def run(self, jobs: Sequence[TensorJob]) -> None:
        """Fold these tensors. Raises MergeError, OutputError, CheckpointError; what is done stays journaled."""
        self._progress.begin(len(jobs), sum(job.nbytes for job in jobs), sum(job.effort for job in jobs))
        announce(self._reads(jobs), self._plan.stream_bytes)
        self._ahead = ReadAhead(requests(self._reads(jobs)), self._plan.buffers.ahead, self._cores)
        behind = WriteBehind(self._plan.buffers.behind)
        self._crew = Crew[Result, Piece](self._hands, self._budget(), self._cores)
        try:
            with freed_at_once() if self._scarce(jobs) else nullcontext():
                self._write(self._crew.run(self._pieces(jobs)), behind)
        except BaseException:
            self._crew.stop()
            # What was handed over is good and worth keeping; the error in hand is the one to tell.
            _quietly_close(behind)
            beside = [checkpoint for own in self._inputs.companions.checkpoints for checkpoint in own.values()]
            for checkpoint in (self._inputs.donor, *self._inputs.models, *beside):
                checkpoint.close()  # a read under way must not hold us up
            raise
        else:
            behind.close()
        finally:
            self._ahead.close()
            self._crew.join()

    def _budget(self) -> int:
        """Bytes that the pieces in hand may take together."""
        return self._plan.work_bytes or _LEAST_BUDGET

    def _scarce(self, jobs: Iterable[TensorJob]) -> bool:
        """Whether the plan's memory is too little for what an allocator may keep of whole tensors that are gone."""
        whole = [job for job in jobs if job.rule.cut is not Cut.BLOCKS]
        at_once = self._hands * max((job.working_bytes for job in whole), default=0)
        return self._cores is not None and (any(job.parked for job in whole) or self._budget() < _KEPT * at_once)

    def _pieces(self, jobs: Iterable[TensorJob]) -> Iterator[Piece]:
        for job in jobs:
            for index, rows in enumerate(list(job.parts()) or [None]):
                yield Piece(self._inputs, self._outputs, self._devices, job, index, rows, self._admit, self._scratch)

    def _reads(self, jobs: Iterable[TensorJob]) -> Iterator[Read]:
        """All that is read, in order."""
        for job in jobs:
            for rows in job.parts():
                yield from reads(self._inputs, job, rows)

    def _admit(self, piece: Piece) -> Callable[[], torch.Tensor]:
        """A piece is taken in hand: what it reads is its own, and may be read before the others have read theirs."""
        if piece.first:
            self._progress.tensor(piece.job.name)
        own = [one.raw_bytes for one in (*self._crew.in_hand(), piece)]
        self._ahead.allow(self._plan.buffers.ahead + sum(own[:-1]))
        return self._ahead.share(len(piece.reads))

    def _write(self, given: Iterable[tuple[Piece, Result | None]], behind: WriteBehind) -> None:
        sink, tally = Sink(behind), Tally()
        for piece, result in given:
            if result is not None:
                sink.put(result.writer, result.name, result.tensor)
                continue
            job, share = piece.job, piece.share
            tally.add(piece)
            self._progress.advance(int(job.nbytes * share), job.effort * share)
            if piece.last:
                behind.put(0, partial(self._complete, job, tally.record(piece)))
                sink, tally = Sink(behind), Tally()

    def _complete(self, job: TensorJob, record: Record) -> None:
        if self._outputs.state is not None:
            for name in self._outputs.state_names(job):
                self._outputs.state.complete(name, {})
        for step, writer in self._outputs.folded(job).items():
            writer.complete(job.name, record if step == self._plan.last_step else {})
        self._progress.tensor_done(job.name)


def _quietly_close(behind: WriteBehind) -> None:
    try:
        behind.close()
    except BaseException:
        return
