"""A result that is not finite: which input is to blame, and what to do."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from dopkit.checkpoints import Checkpoint
from dopkit.errors import MergeError, Problem, count
from dopkit.planning import TensorJob

Input = tuple[Checkpoint, str]


def check_finite(job: TensorJob, merged: torch.Tensor, inputs: Iterable[Input]) -> None:
    """Raises MergeError when a value is NaN or infinite."""
    if merged.is_floating_point() and not all_finite(merged):
        raise explained(job, inputs, None)


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite. Both ends are NaN if any value is, and finding them is ten times as fast
    as a mask."""
    if not tensor.numel() or tensor.element_size() == 1:  # eight bits have no order in torch
        return bool(torch.isfinite(tensor).all())
    return all(math.isfinite(end) for end in torch.stack(torch.aminmax(tensor)).tolist())


def explained(job: TensorJob, inputs: Iterable[Input], error: MergeError | None) -> MergeError:
    """Say which inputs hold NaN or infinity; if none does, the merge or the cast made it."""
    if error is not None and error.problems:
        return MergeError(f"cannot merge {job.name} ({job.rule.name})", error.problems)  # it says itself
    problems = []
    for checkpoint, name in inputs:
        # A tensor of a kept state has a shape of its own.
        parts: Iterable[tuple[int, int] | None] = job.parts() if checkpoint.specs[name].shape == job.shape else [None]
        bad = sum(int((~torch.isfinite(checkpoint.read(name, rows))).sum()) for rows in parts)
        if bad:
            what = f"{name} holds {count(bad, 'value')} that are NaN or infinite"
            problems.append(Problem(checkpoint.ref.short, what, "Fetch the model again, or leave it out."))
    if not problems and error is not None:
        problems = [Problem("", str(error))]
    elif not problems:
        what = f"the result does not fit {job.dtype} or is not a number"
        problems = [Problem("", what, "Set `out_dtype: bfloat16` or `float32`, which hold larger numbers.")]
    return MergeError(f"cannot merge {job.name} ({job.rule.name})", problems)
