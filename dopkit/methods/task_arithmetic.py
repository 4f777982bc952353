"""Sums of task vectors: the base plus what every model adds to it, or plus their weighted mean.

The folds know neither shapes nor roles. Each step is one rounding per element per operation, so that the bytes do not
depend on where the engine cuts a tensor (see ``average``). What is left of a task vector before it is added is the
business of ``trim``, which those of ``sparse`` override.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dopkit.methods.delta_parameters import SumParameters
from dopkit.methods.fold import BaseAndMerged, BaseAndTotal, Context, TaskVectorFold
from dopkit.methods.trimming import Untrimmed


class TaskSum(Untrimmed, TaskVectorFold):
    """W = W0 + sum of f_i (W_i - W0), in the models' own precision, any shape; here every f_i is 1.

    A first model with a factor of 1 is taken as it is, which spares it two roundings.
    """

    def factor(self, ctx: Context) -> float:
        """What the task vector of the model coming in is multiplied by."""
        return 1.0

    def start(self, base: Tensor | None, first: Tensor, ctx: Context) -> BaseAndMerged:
        state = super().start(base, first, ctx)
        factor = self.factor(ctx)
        if factor != 1 or self.trims(ctx):
            state.merged = self.trim(first.sub_(state.base), ctx).mul_(factor).add_(state.base)
        return state

    def step(self, state: BaseAndMerged, incoming: Tensor, ctx: Context) -> BaseAndMerged:
        state.merged += self.trim(incoming.sub_(state.base), ctx).mul_(self.factor(ctx))
        return state


class TaskArithmetic(TaskSum):
    """f_i = lambda * weight_i, the weight being the one the recipe gives the model, or the recipe's own.

    Source: Ilharco et al., Editing Models with Task Arithmetic, ICLR 2023, https://arxiv.org/abs/2212.04089
    """

    def factor(self, ctx: Context) -> float:
        assert isinstance(ctx.parameters, SumParameters)
        return ctx.parameters.lambda_ * ctx.parameters.weight


class TaskMean(Untrimmed):
    """W = W0 + lambda * sum weight_i (W_i - W0) / sum weight_i: ``normalize: true``."""

    def start(self, base: Tensor | None, first: Tensor, ctx: Context) -> BaseAndTotal:
        """Raises ValueError without a base."""
        if base is None:
            raise ValueError("a fold of task vectors needs the base model's tensor")
        return self.step(BaseAndTotal(base, torch.zeros_like(base)), first, ctx)

    def step(self, state: BaseAndTotal, incoming: Tensor, ctx: Context) -> BaseAndTotal:
        assert isinstance(ctx.parameters, SumParameters)
        state.total += self.trim(incoming.sub_(state.base), ctx).mul_(ctx.parameters.weight)
        return state

    def finish(self, state: BaseAndTotal, ctx: Context) -> Tensor:
        return (state.total * self._share(ctx)).add_(state.base)

    def pack(self, state: BaseAndTotal) -> dict[str, Tensor]:
        return {"total": state.total}

    def unpack(self, base: Tensor | None, packed: Mapping[str, Tensor], ctx: Context) -> BaseAndTotal:
        """Of the total, or of what was merged."""
        if base is None:
            raise ValueError("a fold of task vectors needs the base model's tensor")
        if "merged" not in packed:
            return BaseAndTotal(base, packed["total"])
        share = self._share(ctx)
        return BaseAndTotal(base, packed["merged"].sub_(base).div_(share or 1.0))

    def _share(self, ctx: Context) -> float:
        """What the total is multiplied by. Weights that add up to zero, on the way to others, give the base."""
        weights = [own.weight for own in ctx.so_far if isinstance(own, SumParameters)]
        assert isinstance(ctx.parameters, SumParameters)
        return ctx.parameters.lambda_ / sum(weights) if sum(weights) else 0.0
