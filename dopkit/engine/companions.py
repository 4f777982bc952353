"""What is read beside the models: checked, and measured as a whole before a merge that wants to know its size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dopkit.checkpoints import Checkpoint
from dopkit.engine.announcing import Read, announce, requests
from dopkit.engine.pipes import ReadAhead
from dopkit.errors import MergeError, PlanError, Problem, count
from dopkit.planning import Input, Plan, TensorJob
from dopkit.progress import Progress

Tensors = Sequence[Mapping[str, Checkpoint]]  # for each of the plan's models, by parameter
Sizes = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Companions:
    """What is read beside each model, and how large that is: its root mean square over all that is merged with it."""

    checkpoints: Tensors = ()
    sizes: Sizes = ()

    def of(self, job: TensorJob, one: Input) -> Iterator[tuple[Checkpoint, str]]:
        """What is read beside one input of a job, in the order of its rule."""
        for part, name in zip(job.rule.companions, one.companions, strict=False):
            yield self.checkpoints[one.model][part], name

    def size(self, one: Input) -> Mapping[str, float]:
        return self.sizes[one.model] if self.sizes else {}


def check(checkpoint: Checkpoint, name: str, tensor: Tensor) -> Tensor:
    """The tensor, if no entry of it is negative, NaN or infinite. Raises MergeError."""
    if what := _wrong(name, tensor):
        raise MergeError(f"cannot merge with {checkpoint.ref.short}", [Problem(checkpoint.ref.short, what, _REMEDY)])
    return tensor


def measure(plan: Plan, checkpoints: Tensors, progress: Progress) -> Sizes:
    """The root mean square of every companion over all that is merged with it; () where the method has no use for it.

    Reads them once from end to end. Sums in float64, always in one order. Raises PlanError with a problem for each that
    cannot be merged with, CheckpointError.
    """
    if not plan.companions or not plan.recipe.method.measures(plan.recipe.parameters):
        return ()
    progress.stage("measuring")
    work = [{part: _Measure(one) for part, one in own.items()} for own in checkpoints]
    reads = list(_reads(plan, checkpoints))
    announce((read for *_, read in reads), plan.stream_bytes)
    ahead = ReadAhead(requests(read for *_, read in reads), plan.buffers.ahead)
    try:
        for index, part, (_, name, _) in reads:
            work[index][part].add(name, next(ahead))
    finally:
        ahead.close()
    if problems := [problem for own in work for part, one in own.items() if (problem := one.problem(part))]:
        raise PlanError(f"cannot merge: {count(len(problems), 'problem')}", problems)
    return [{part: one.size for part, one in own.items()} for own in work]


def _reads(plan: Plan, checkpoints: Tensors) -> Iterator[tuple[int, str, Read]]:
    """All that is read beside one model after another, in blocks: the model, the parameter, what to read."""
    for index, own in enumerate(checkpoints):
        for job in plan.jobs:
            for one in job.inputs:
                names = one.companions if one.model == index else ()
                for part, name in zip(job.rule.companions, names, strict=False):
                    yield from ((index, part, (own[part], name, rows)) for rows in job.blocks())


class _Measure:
    """One companion, block after block."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._squares: list[float] = []
        self._number = 0
        self._wrong: dict[str, str] = {}  # of every tensor that cannot be merged with

    def add(self, name: str, block: Tensor) -> None:
        if what := _wrong(name, block):
            self._wrong.setdefault(name, what)
        self._squares.append(float(block.to(torch.float64).square_().sum()))
        self._number += block.numel()

    @property
    def size(self) -> float:
        return math.sqrt(math.fsum(self._squares) / max(1, self._number))

    def problem(self, part: str) -> Problem | None:
        shown = self._checkpoint.ref.short
        if self._wrong:
            first, *others = self._wrong.values()
            more = f" (and so do {count(len(others), 'other tensor')})" if others else ""
            return Problem(shown, first + more, _REMEDY)
        if self._number and not self.size:
            return Problem(shown, f"its {part} is zero everywhere, so no weight counts", "Make it again.")
        return None


_REMEDY = "Is this a file of weights, and not of how much they count? Else make it again."


def _wrong(name: str, tensor: Tensor) -> str:
    """What is wrong with a tensor's values; "" when nothing is."""
    bad = {"negative": tensor < 0, "NaN or infinite": ~torch.isfinite(tensor)}
    found = [f"{count(int(where.sum()), 'value')} that are {kind}" for kind, where in bad.items() if bool(where.any())]
    return f"{name} holds {' and '.join(found)}" if found else ""
