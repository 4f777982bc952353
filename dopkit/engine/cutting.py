"""What is merged element by element stays in a core's cache: in which cuts, and when that can be done.

A cut gets what the whole would: where is cut has no part in a result.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from dopkit.checkpoints.reading import torch_dtype
from dopkit.methods import FLOAT32, Cut
from dopkit.planning import Plan, TensorJob
from dopkit.planning.room import TOGETHER_BYTES

Rows = tuple[int, int]
CUT_ELEMENTS = 1 << 17  # few enough to stay in a core's cache, many enough that the interpreter is not in the way
_SUMS = 4  # tensors of sums that a fold of whole tensors would hold instead


def cuts(job: TensorJob, rows: Rows) -> list[Rows]:
    """Runs of rows of about a cut's size."""
    step = max(1, CUT_ELEMENTS // max(1, job.numel // max(1, job.rows)))
    return [(start, min(rows[1], start + step)) for start in range(*rows, step)]


def by_elements(plan: Plan, job: TensorJob) -> bool:
    """Whether a part is cut once more: that takes all models at once, as they are read, so not of many of them."""
    return job.rule.cut is Cut.BLOCKS and _fresh(plan) and _tensors(job) * _part_bytes(job) <= TOGETHER_BYTES


def surveyed(plan: Plan, job: TensorJob, raw_bytes: int) -> bool:
    """Whether all models of a whole tensor are held as they are read, instead of what would be summed up of them."""
    return job.rule.cut is Cut.WHOLE and _fresh(plan) and raw_bytes <= _SUMS * _part_bytes(job)


def _fresh(plan: Plan) -> bool:
    """A state that is kept, or that the merge goes on from, is that of a whole part."""
    return not plan.keeps_state and plan.continues is None


def _tensors(job: TensorJob) -> int:
    return 1 + len(job.inputs) * (1 + len(job.rule.companions))


def _part_bytes(job: TensorJob) -> int:
    return FLOAT32 * math.prod(job.part_shape)


class WholeTensor:
    """A model's tensor beside the base's, both as they were read: see ``methods.fold.Whole``."""

    def __init__(self, job: TensorJob, base: torch.Tensor, model: torch.Tensor) -> None:
        self.numel = base.numel()
        self._base, self._model = base.reshape(-1), model.reshape(-1)
        self._working = torch_dtype(job.working_dtype)

    def sample(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self._base[::step].to(self._working), self._model[::step].to(self._working, copy=True)

    def blocks(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for start in range(0, self.numel, CUT_ELEMENTS):
            base, model = (tensor[start : start + CUT_ELEMENTS] for tensor in (self._base, self._model))
            yield base.to(self._working), model.to(self._working, copy=True)
