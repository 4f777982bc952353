"""The scale of a merged task vector: a number, or the one that gives the whole model the norm of its experts.

    W_out = W_0 + s (W - W_0),    s = mean over the models so far of || tau_k ||  /  || W - W_0 ||

with Frobenius norms over all merged tensors together (Tang et al., OPCM, https://arxiv.org/abs/2501.09522; the norms of
a step are those of the models up to it). The second pass over a merge whose results wait for s lives here too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dopkit.checkpoints import Checkpoint
from dopkit.checkpoints.reading import SafetensorsFiles, torch_dtype
from dopkit.engine.announcing import announce
from dopkit.engine.blame import check_finite
from dopkit.engine.outputs import Outputs, Sink
from dopkit.engine.pipes import WriteBehind
from dopkit.planning import Plan, TensorJob
from dopkit.planning.outputs import UNSCALED
from dopkit.planning.sharing import moving_cost
from dopkit.progress import Progress
from dopkit.specs import TensorSpec
from dopkit.writer import TensorWriter

TASKS, MERGED = "task_squares", "merged_squares"  # in the journal's entry of a result that waits


@dataclass(frozen=True)
class Norms:
    """Frobenius norms over the whole model."""

    tasks: tuple[float, ...]  # of each model's task vector, in merge order
    merged: dict[int, float]  # of the merged task vector before scaling, by step

    def scale(self, step: int) -> float:
        """What the merged task vector is multiplied by; one model is taken as it is, and so is a zero task vector."""
        if step == 1 or not self.merged[step]:
            return 1.0
        return math.fsum(self.tasks[:step]) / step / self.merged[step]


def scaled(base: Tensor, merged: Tensor, scale: float) -> Tensor:
    """base + scale * (merged - base), a new tensor in the same dtype; one rounding per element and operation."""
    return (merged - base).mul_(scale).add_(base)


def squares(base: Tensor, model: Tensor) -> float:
    """The sum of squares of a task vector, added up in float64."""
    return float((model - base).square_().sum(dtype=torch.float64))


def measure(outputs: Outputs[TensorWriter]) -> Norms | None:
    """The norms that the first pass has measured, in this run or an earlier one; None when none were asked for."""
    plan = outputs.plan
    if plan.scale != "norm":
        return None
    waiting = [job.name for job in plan.jobs if outputs.waits(job)]  # none where everything is copied
    entries = [outputs.unscaled[plan.last_step].entry(name) for name in waiting]
    earlier = plan.continues.norms if plan.continues else ()
    new = len(plan.models) - (1 if plan.continues else 0)
    tasks = [math.sqrt(math.fsum(entry[TASKS][index] for entry in entries)) for index in range(new)]
    merged = {
        step: math.sqrt(math.fsum(entry[MERGED][index] for entry in entries))
        for index, step in enumerate(plan.written_steps)
    }
    return Norms((*earlier, *tasks), merged)


class Scaler:
    """The second pass: reads what the folds returned, scales it, casts it once, writes it."""

    def __init__(self, outputs: Outputs[TensorWriter], donor: Checkpoint, folder: Path, progress: Progress) -> None:
        self._outputs, self._donor, self._progress = outputs, donor, progress
        self._plan = outputs.plan
        self._specs = {
            tensor.name: TensorSpec(tensor.name, tensor.dtype, tensor.shape, shard.file, tensor.offset)
            for shard in self._plan.unscaled_shards
            for tensor in shard.tensors
        }
        self._files = {
            step: SafetensorsFiles({shard.file: place / shard.file for shard in self._plan.unscaled_shards})
            for step in self._plan.written_steps
            for place in [folder / unscaled_folder(step)]
        }

    def run(self, jobs: Sequence[TensorJob], norms: Norms) -> None:
        """Scale these results. Raises MergeError, OutputError, CheckpointError; what is done is journaled."""
        self._progress.stage("scaling")
        self._progress.begin(len(jobs), sum(job.nbytes for job in jobs), sum(map(moving_cost, jobs)))
        announce(self._reads(jobs), self._plan.stream_bytes)
        behind = WriteBehind(self._plan.buffers.behind)
        try:
            for job in jobs:
                self._progress.tensor(job.name)
                self._scale(job, norms, behind)
        finally:
            behind.close()
            for files in self._files.values():
                files.close()

    def _reads(self, jobs: Sequence[TensorJob]) -> Iterator[tuple[Checkpoint, str, tuple[int, int] | None]]:
        for job in jobs:
            assert job.base is not None, "what is scaled has a base"
            for rows in job.blocks():
                yield self._donor, job.base, rows

    def _scale(self, job: TensorJob, norms: Norms, behind: WriteBehind) -> None:
        sink, dtype, working = Sink(behind), torch_dtype(job.dtype), torch_dtype(job.working_dtype)
        assert job.base is not None
        for rows in job.blocks():
            base = self._donor.read(job.base, rows).to(working)
            for step, writer in self._outputs.models.items():
                merged, scale = self._files[step].read(self._specs[job.name], rows), norms.scale(step)
                result = (merged if scale == 1 else scaled(base, merged, scale)).to(dtype)
                check_finite(job, result, ())
                sink.put(writer, job.name, result)
            nbytes = job.nbytes * (rows[1] - rows[0]) // max(1, job.rows)
            self._progress.advance(nbytes, moving_cost(job) * (rows[1] - rows[0]) / max(1, job.rows))
        behind.put(0, partial(self._complete, job))

    def _complete(self, job: TensorJob) -> None:
        last = self._plan.last_step
        entry = self._outputs.unscaled[last].entry(job.name)
        record = {key: value for key, value in entry.items() if key not in ("name", "crc", "at", TASKS, MERGED)}
        for step, writer in self._outputs.models.items():
            writer.complete(job.name, record if step == last else {})
        self._progress.tensor_done(job.name)


def unscaled_folder(step: int) -> str:
    """Where the results of this step wait, in the working folder."""
    return f"{UNSCALED}/{step:02d}"


def number(plan: Plan) -> float:
    """The scale that is known before the merge, 1 when there is none or it is measured."""
    return plan.scale if isinstance(plan.scale, float | int) else 1.0
