"""Sums of task vectors, element by element: the base plus what every model adds to it.

Neither fold knows shapes or roles. Each step is one rounding per element per operation, so that the bytes do not depend
on where the engine cuts a tensor (see ``average``).
"""

from __future__ import annotations

from torch import Tensor

from dopkit.methods.continual_parameters import TaskArithmeticParameters
from dopkit.methods.fold import BaseAndMerged, Context, TaskVectorFold


class TaskSum(TaskVectorFold):
    """W = W0 + sum of f_i (W_i - W0), in the models' own precision, any shape; here every f_i is 1.

    The first model with a factor of 1 is taken as it is, which spares it two roundings.
    """

    def factor(self, ctx: Context) -> float:
        """What the task vector of the model coming in is multiplied by."""
        return 1.0

    def start(self, base: Tensor | None, first: Tensor, ctx: Context) -> BaseAndMerged:
        state = super().start(base, first, ctx)
        factor = self.factor(ctx)
        if factor != 1:
            state.merged = first.sub_(state.base).mul_(factor).add_(state.base)
        return state

    def step(self, state: BaseAndMerged, incoming: Tensor, ctx: Context) -> BaseAndMerged:
        state.merged += incoming.sub_(state.base).mul_(self.factor(ctx))
        return state


class TaskArithmetic(TaskSum):
    """f_i = lambda * weight_i, the weight being the one the recipe gives the model, or the recipe's own.

    Source: Ilharco et al., Editing Models with Task Arithmetic, ICLR 2023, https://arxiv.org/abs/2212.04089
    """

    def factor(self, ctx: Context) -> float:
        assert isinstance(ctx.parameters, TaskArithmeticParameters)
        return ctx.parameters.lambda_ * ctx.parameters.weight
