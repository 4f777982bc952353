"""The loop: tensor outside, model inside. Reads, folds, casts once, writes.

Knows the plan, the sources and the writer; a method only as a Fold. Runs in one process on one device, with the CPU
for what does not fit there.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from dopkit.checkpoints import Checkpoint
from dopkit.checkpoints.reading import bytes_of, torch_dtype
from dopkit.device import Devices
from dopkit.engine.announcing import Read, announce
from dopkit.engine.pipes import ReadAhead, Request, WriteBehind
from dopkit.errors import MergeError, Problem, count
from dopkit.measure import peak_resident_bytes
from dopkit.methods.fold import Context, Fold
from dopkit.planning import Plan, TensorJob
from dopkit.planning.building import READ_AHEAD_BYTES, WRITE_BEHIND_BYTES
from dopkit.progress import Progress
from dopkit.writer import ShardWriter

Record = dict[str, Any]


class Engine:
    """Runs the jobs of one plan that the writer does not have yet."""

    def __init__(
        self,
        plan: Plan,
        donor: Checkpoint,
        models: Sequence[Checkpoint],
        writer: ShardWriter,
        devices: Devices,
        progress: Progress,
    ) -> None:
        self._plan = plan
        self._donor = donor
        self._models = models
        self._writer = writer
        self._devices = devices
        self._progress = progress
        self._parameters = [plan.recipe.parameters_for(index) for index in range(len(models))]

    def run(self) -> None:
        """Merge every tensor. Raises MergeError, OutputError, CheckpointError; what is done stays journaled."""
        jobs = [job for job in self._plan.jobs if job.name not in self._writer.done]
        self._progress.begin(len(jobs), sum(job.nbytes for job in jobs), sum(job.effort for job in jobs))
        announce(self._reads(jobs), self._plan.stream_bytes)
        ahead = ReadAhead(self._requests(jobs), READ_AHEAD_BYTES)
        behind = WriteBehind(WRITE_BEHIND_BYTES)
        try:
            for job in jobs:
                self._progress.tensor(job.name)
                self._merge(job, ahead, behind)
        except BaseException:
            # What was handed over is good and worth keeping; the error in hand is the one to tell.
            _quietly_close(behind)
            for checkpoint in (self._donor, *self._models):
                checkpoint.close()  # a read under way must not hold us up
            raise
        else:
            behind.close()
        finally:
            ahead.close()

    def _requests(self, jobs: Iterable[TensorJob]) -> Iterator[Request]:
        for checkpoint, name, rows in self._reads(jobs):
            spec = checkpoint.specs[name]
            share = 1.0 if rows is None else (rows[1] - rows[0]) / max(1, spec.rows)
            yield Request(int(spec.nbytes * share), partial(checkpoint.read, name, rows))

    def _reads(self, jobs: Iterable[TensorJob]) -> Iterator[Read]:
        """All that is read, in order; no rows means the whole tensor."""
        for job in jobs:
            for rows in job.parts():
                for checkpoint, name in self._inputs(job):
                    whole = job.part_rows >= checkpoint.specs[name].rows
                    yield checkpoint, name, None if whole else rows

    def _inputs(self, job: TensorJob) -> Iterator[tuple[Checkpoint, str]]:
        """What is read for each part of a job, in this order."""
        if job.base is not None:
            yield self._donor, job.base
        if job.rule.fold is not None:
            yield from zip(self._models, job.names, strict=True)

    def _merge(self, job: TensorJob, ahead: ReadAhead, behind: WriteBehind) -> None:
        started = time.monotonic()
        device = self._devices.place(job.working_bytes, float64=job.rule.float64 or job.dtype == "F64")
        fold = job.rule.load() if job.rule.fold else None
        steps: list[Record] = []
        position = 0
        for index, rows in enumerate(job.parts()):
            merged = self._merge_part(job, fold, device, ahead, _recorder(steps, job, index))
            self._check_finite(job, rows, merged)
            data = bytes_of(merged.contiguous())
            behind.put(len(data), partial(self._writer.write, job.name, position, data))
            position += len(data)
            self._progress.advance(len(data), job.effort * len(data) / job.nbytes)
        record: Record = {
            "rule": job.rule.name,
            "device": device.type,
            "seconds": round(time.monotonic() - started, 4),
            "peak": peak_resident_bytes(),
        }
        if steps:
            record["steps"] = steps
        behind.put(0, partial(self._complete, job.name, record))

    def _complete(self, name: str, record: Record) -> None:
        self._writer.complete(name, record)
        self._progress.tensor_done(name)

    def _merge_part(
        self, job: TensorJob, fold: Fold | None, device: torch.device, ahead: ReadAhead, record: Any
    ) -> torch.Tensor:
        """One part of one tensor, folded over all models, in the output dtype on the CPU."""
        dtype = torch_dtype(job.dtype)
        if fold is None:
            return next(ahead).to(dtype)
        # float32 throughout, whatever the inputs; a float64 model keeps its own precision
        working = torch.float64 if job.dtype == "F64" else torch.float32
        base = self._up(next(ahead), job, device, working) if job.base is not None else None
        state: Any = None
        for step, parameters in enumerate(self._parameters, start=1):
            incoming = self._up(next(ahead), job, device, working)
            context = Context(parameters, job.role, step, record)
            try:
                state = fold.step(state, incoming, context) if step > 1 else fold.start(base, incoming, context)
            except MergeError as error:
                raise self._explained(job, error) from error
        return fold.finish(state, context).to("cpu", dtype)  # the one cast

    def _up(self, raw: torch.Tensor, job: TensorJob, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        tensor = raw.to(device=device, dtype=dtype)
        return tensor[0] if job.slices else tensor

    def _check_finite(self, job: TensorJob, rows: tuple[int, int], merged: torch.Tensor) -> None:
        if merged.is_floating_point() and not bool(torch.isfinite(merged).all()):
            raise self._explained(job, None)

    def _explained(self, job: TensorJob, error: MergeError | None) -> MergeError:
        """Say which inputs hold NaN or infinity; if none does, the merge or the cast made it."""
        problems = []
        for checkpoint, name in self._inputs(job):
            bad = sum(int((~torch.isfinite(checkpoint.read(name, rows))).sum()) for rows in job.parts())
            if bad:
                what = f"{name} holds {count(bad, 'value')} that are NaN or infinite"
                problems.append(Problem(checkpoint.ref.short, what, "Fetch the model again, or leave it out."))
        if not problems and error is not None:
            problems = [Problem("", str(error))]
        elif not problems:
            what = f"the result does not fit {job.dtype} or is not a number"
            problems = [Problem("", what, "Set `out_dtype: bfloat16` or `float32`, which hold larger numbers.")]
        return MergeError(f"cannot merge {job.name} ({job.rule.name})", problems)


def _recorder(steps: list[Record], job: TensorJob, index: int) -> Any:
    def record(numbers: Record) -> None:
        steps.append({"slice": index, **numbers} if job.slices else numbers)

    return record


def _quietly_close(behind: WriteBehind) -> None:
    try:
        behind.close()
    except BaseException:
        return
