"""What is read for a job, in which order, and where the job is merged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from dopkit.checkpoints import Checkpoint
from dopkit.device import Devices
from dopkit.engine.blame import Input
from dopkit.engine.companions import Companions
from dopkit.planning import Plan, TensorJob
from dopkit.planning.outputs import state_name
from dopkit.short_names import told_apart


def device_of(job: TensorJob, devices: Devices) -> torch.device:
    """Where a job is merged."""
    return devices.place(job.working_bytes, float64=job.rule.float64 or job.dtype == "F64")


class Inputs:
    """What is read for the jobs of one plan, in this order. ``state`` is that of folds which the merge goes on from."""

    def __init__(
        self,
        plan: Plan,
        donor: Checkpoint,
        models: Sequence[Checkpoint],
        state: Checkpoint | None = None,
        companions: Companions | None = None,
    ) -> None:
        self.plan, self.donor, self.models, self.state = plan, donor, models, state
        self.companions = companions or Companions()
        self.names = told_apart([source.ref.name for source in plan.merged_models])

    def of(self, job: TensorJob) -> Iterator[Input]:
        """The tensors that each part of a job needs."""
        if job.base is not None:
            yield self.donor, job.base
        if job.rule.fold is not None:
            for part in self.packed(job):
                assert self.state is not None
                yield self.state, state_name(job, part)
            for one in job.inputs[1:] if self.packed(job) else job.inputs:
                yield self.models[one.model], one.name
                yield from self.companions.of(job, one)

    def packed(self, job: TensorJob) -> list[str]:
        """The tensors of the state that the job's fold goes on from; none when it begins with a model."""
        return [] if self.state is None else list(job.rule.state(job.part_shape))
