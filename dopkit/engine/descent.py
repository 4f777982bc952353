"""Whether a model was fine-tuned from the base at all, judged by a sample of its matrices.

Fine-tuning moves weights by a few percent; two trainings from scratch have nothing in common. Headers cannot tell them
apart, and a task vector between strangers makes a model that says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from dopkit.checkpoints import Checkpoint
from dopkit.errors import Problem
from dopkit.planning import Plan, TensorJob
from dopkit.roles import Role

_MATRICES, _ELEMENTS = 8, 1 << 16  # how many matrices are looked at, and how much of each
_LEAST_COSINE = 0.5
_ROLES = (Role.LINEAR, Role.CONV1D, Role.EXPERTS, Role.EXPERTS_CONV1D, Role.CONV)


def check_descent(plan: Plan, donor: Checkpoint, models: Sequence[Checkpoint]) -> list[Problem]:
    """Every model whose weights do not point where the base's do; none when there is no base to compare with."""
    if plan.recipe.base_model is None:
        return []
    candidates = [job for job in plan.jobs if job.role in _ROLES and job.inputs and job.numel > 1]
    largest = sorted(candidates, key=lambda job: (-job.numel, job.name))
    spread = largest[:: max(1, len(largest) // _MATRICES)][:_MATRICES]
    problems = []
    for index, model in enumerate(models):
        cosine = _cosine([(job, one.name) for job in spread for one in job.inputs if one.model == index], donor, model)
        if cosine is not None and cosine < _LEAST_COSINE:
            what = f"was not fine-tuned from {donor.ref.short}: its weights are others (cosine {cosine:.2f})"
            problems.append(Problem(model.ref.short, what, "Add models that were fine-tuned from the same base."))
    return problems


def _cosine(jobs: Sequence[tuple[TensorJob, str]], donor: Checkpoint, model: Checkpoint) -> float | None:
    """Between the sampled weights, of the donor and of the model, whose names are given; None when either is zero."""
    product = own = other = 0.0
    for job, name in jobs:
        rows = (0, max(1, min(job.rows, _ELEMENTS * job.rows // job.numel)))
        one = donor.read(job.donor, rows).to(torch.float64)
        two = model.read(name, rows).to(torch.float64)
        product, own, other = product + float((one * two).sum()), own + _squares(one), other + _squares(two)
    norms = math.sqrt(own * other)
    return product / norms if norms else None


def _squares(tensor: torch.Tensor) -> float:
    return float(tensor.square().sum())
