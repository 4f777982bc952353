"""Where results go: the model after every written step, the state of the folds, results that wait for a scale.

Knows writers and jobs, no arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

import torch

from dopkit.checkpoints.reading import bytes_of
from dopkit.engine.pipes import WriteBehind
from dopkit.planning import Plan, TensorJob
from dopkit.planning.outputs import state_name
from dopkit.writer import TensorWriter

W = TypeVar("W", bound=TensorWriter, covariant=True)


@dataclass(frozen=True)
class Outputs(Generic[W]):
    """The writers of one merge, by step; those of the process that leads it know what an earlier run has left."""

    plan: Plan
    models: Mapping[int, W]  # of plan.written_steps
    unscaled: Mapping[int, W] = field(default_factory=dict)  # of the same steps, or none
    state: W | None = None

    def waits(self, job: TensorJob) -> bool:
        """Whether the job's results wait for the scale of the whole model."""
        return bool(self.unscaled) and job.rule.fold is not None

    def folded(self, job: TensorJob) -> Mapping[int, W]:
        """Where the results of the job's fold go."""
        return self.unscaled if self.waits(job) else self.models

    def state_names(self, job: TensorJob) -> list[str]:
        """The tensors of the job's state in its file; none when no state is kept."""
        if self.state is None or job.rule.fold is None:
            return []
        return [state_name(job, part) for part in job.rule.state(job.part_shape)]

    def to_fold(self) -> list[TensorJob]:
        """The jobs that have to be folded, again or for the first time."""
        return [job for job in self.plan.jobs if not self._is_folded(job)]

    def to_scale(self) -> list[TensorJob]:
        """The folded jobs whose scaled results are not all there."""
        waiting = [job for job in self.plan.jobs if self.waits(job)]
        return [job for job in waiting if not all(job.name in writer.done for writer in self.models.values())]

    def _is_folded(self, job: TensorJob) -> bool:
        # What waits is taken away once everything is scaled.
        there = any(
            all(job.name in writer.done for writer in writers.values()) for writers in (self.folded(job), self.models)
        )
        return there and (self.state is None or self.state.done.issuperset(self.state_names(job)))


class Sink:
    """One job's results on their way to the writers: every part of a tensor goes behind the one before."""

    def __init__(self, behind: WriteBehind) -> None:
        self._behind = behind
        self._positions: dict[tuple[int, str], int] = {}

    def put(self, writer: TensorWriter, name: str, tensor: torch.Tensor) -> None:
        """Hand a part over; it must not change any more."""
        if not tensor.numel():
            return
        data = bytes_of(tensor.contiguous())
        place = (id(writer), name)
        position = self._positions.get(place, 0)
        self._behind.put(len(data), partial(writer.write, name, position, data))
        self._positions[place] = position + len(data)
