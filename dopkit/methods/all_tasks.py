"""The folds that fit all tasks at once from sums: DOP over all tasks, and WUDI. The order of the models is no matter.

DOP: Yang et al., NeurIPS 2025, https://openreview.net/forum?id=zD5cUX67b9; remembering all tasks is dopkit's.
WUDI: Cheng et al., Whoever Started the Interference Should End It: Guiding Data-Free Model Merging via Task Vectors,
ICML 2025, https://arxiv.org/abs/2503.08099; the closed form is dopkit's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dopkit.methods.continual_parameters import WudiParameters
from dopkit.methods.dop_terms import Sides, sides_of
from dopkit.methods.finite import refuse_not_finite
from dopkit.methods.fold import Context
from dopkit.methods.parameters import DopParameters
from dopkit.methods.task_sums import TaskSums


@dataclass
class BaseAndSums:
    """The state: what the tasks so far left, and the base they are task vectors of."""

    base: Tensor  # (m, n), never written to
    sums: TaskSums


class AllTasks(ABC):
    """What both share. One 2-D matrix; the result is the base plus the minimum over the models so far.

    * One model, or copies of one: that model, bit for bit.
    * A model that equals the base (a frozen layer) has no say where another has one; all of them: the base.
    * A value that is not finite: MergeError.
    """

    @abstractmethod
    def sides(self, ctx: Context) -> Sides:
        """The sides of the matrix, as it is stored, on which the distance to a task counts."""

    @abstractmethod
    def add(self, sums: TaskSums, tau: Tensor, norm: float, ctx: Context) -> dict[str, Any]:
        """Add a task vector of Frobenius norm ``norm`` > 0; return what is known of it for the receipt."""

    def ridge(self, ctx: Context) -> float:
        """How firmly the result is held to the mean of the task vectors, as ``TaskSums.fit`` has it."""
        return 0.0

    def start(self, base: Tensor | None, first: Tensor, ctx: Context) -> BaseAndSums:
        """Raises ValueError without a base."""
        if base is None:
            raise ValueError("a fold of task vectors needs the base model's tensor")
        return self.step(BaseAndSums(base, TaskSums.empty(base, self.sides(ctx))), first, ctx)

    def step(self, state: BaseAndSums, incoming: Tensor, ctx: Context) -> BaseAndSums:
        """Records step, norm_incoming (Frobenius, of the task vector) and what ``add`` knows.

        Raises MergeError when a matrix holds NaN or infinity.
        """
        refuse_not_finite(base=state.base, incoming=incoming)
        tau = incoming.to(torch.float64, copy=True).sub_(state.base)
        del incoming
        norm = float(tau.norm())
        # A zero task vector adds nothing to any sum.
        known = self.add(state.sums, tau, norm, ctx) if norm > 0 else {}
        ctx.record({"step": ctx.step, "norm_incoming": norm, **known})
        return state

    def finish(self, state: BaseAndSums, ctx: Context) -> Tensor:
        """Records step, objective_before (at the mean of the task vectors) and objective_after (at the minimum)."""
        fitted = state.sums.fit(ctx.step, self.ridge(ctx))
        ctx.record({"step": ctx.step, "objective_before": fitted.before, "objective_after": fitted.after})
        return fitted.point.add_(state.base).to(state.base.dtype)

    def pack(self, state: BaseAndSums) -> dict[str, Tensor]:
        return state.sums.pack()

    def unpack(self, base: Tensor | None, packed: Mapping[str, Tensor], ctx: Context) -> BaseAndSums:
        if base is None:
            raise ValueError("a fold of task vectors needs the base model's tensor")
        return BaseAndSums(base, TaskSums.unpack(packed))


class DopAll(AllTasks):
    """DOP with ``history: all``: every task weighs 1, its losses projected as ``svd_epsilon`` and the space say.

    Records rank_incoming beside the rest.
    """

    def sides(self, ctx: Context) -> Sides:
        assert isinstance(ctx.parameters, DopParameters)
        return sides_of(ctx.parameters.svd_proj_space, ctx.role)

    def add(self, sums: TaskSums, tau: Tensor, norm: float, ctx: Context) -> dict[str, Any]:
        parameters = ctx.parameters
        assert isinstance(parameters, DopParameters)
        return {"rank_incoming": sums.add(tau, 1.0, parameters.svd_epsilon, parameters.rank_rule)}


class Wudi(AllTasks):
    """The minimum of sum_t || (X - tau_t) tau_t^T ||^2 / || tau_t ||^2 + r || X - M ||^2: the input side only.

    Where the sum says nothing, every task vector is zero. Where it says little, it is ill-conditioned: the published
    procedure takes a few hundred small steps from the sum of the task vectors and never gets far there. In closed form
    the ``ridge`` does that, with M the mean of the task vectors, so that copies of one model stay that model.
    """

    def sides(self, ctx: Context) -> Sides:
        assert isinstance(ctx.parameters, WudiParameters)
        return sides_of("v", ctx.role)

    def ridge(self, ctx: Context) -> float:
        assert isinstance(ctx.parameters, WudiParameters)
        return ctx.parameters.ridge

    def add(self, sums: TaskSums, tau: Tensor, norm: float, ctx: Context) -> dict[str, Any]:
        sums.add_whole(tau, norm**-2)
        return {}
