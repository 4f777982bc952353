"""The folds of trimmed task vectors: each way of trimming, with each way of adding up what is left.

DARE: Yu et al., Language Models are Super Mario, ICML 2024, https://arxiv.org/abs/2311.03099
DELLA: Deep et al., DELLA-Merging, 2024, https://arxiv.org/abs/2406.11617
Model Breadcrumbs: Davari and Belilovsky, ECCV 2024, https://arxiv.org/abs/2312.06795
"""

from __future__ import annotations

from torch import Tensor

from dopkit.methods import trimming
from dopkit.methods.delta_parameters import DropParameters, MiddleParameters, RankedDropParameters
from dopkit.methods.draws import uniform
from dopkit.methods.finite import refuse_not_finite
from dopkit.methods.fold import Context
from dopkit.methods.task_arithmetic import TaskArithmetic, TaskMean
from dopkit.methods.ties import Election


class _Drop:
    """DARE: entries dropped by chance, the others divided by theirs to stay."""

    def trims(self, ctx: Context) -> bool:
        assert isinstance(ctx.parameters, DropParameters)
        return ctx.parameters.density < 1

    def trim(self, entries: Tensor, ctx: Context) -> Tensor:
        parameters = ctx.parameters
        assert isinstance(parameters, DropParameters)
        if not self.trims(ctx):
            return entries
        draws = uniform(ctx, tuple(entries.shape))
        return trimming.drop_at_random(entries, draws, parameters.density, parameters.rescale)


class _DropByRank(_Drop):
    """DELLA: the larger an entry among those of its row, the greater its chance to stay."""

    def trim(self, entries: Tensor, ctx: Context) -> Tensor:
        parameters = ctx.parameters
        assert isinstance(parameters, RankedDropParameters)
        if not self.trims(ctx):
            return entries
        draws = uniform(ctx, tuple(entries.shape))
        return trimming.drop_by_rank(entries, draws, parameters.density, parameters.epsilon, parameters.rescale)


class _KeepMiddle:
    """Model Breadcrumbs: neither the largest entries nor the smallest; NaN or infinity among them is a MergeError."""

    def trims(self, ctx: Context) -> bool:
        assert isinstance(ctx.parameters, MiddleParameters)
        return ctx.parameters.density < 1

    def trim(self, entries: Tensor, ctx: Context) -> Tensor:
        parameters = ctx.parameters
        assert isinstance(parameters, MiddleParameters)
        refuse_not_finite(incoming=entries)
        if not parameters.rescale:
            return trimming.keep_middle(entries, parameters.density, parameters.gamma)
        before = trimming.sum_of_magnitudes(entries)
        return trimming.restore_sum(trimming.keep_middle(entries, parameters.density, parameters.gamma), before)


class DareLinear(_Drop, TaskArithmetic):
    """The sum of what DARE leaves."""


class DareMean(_Drop, TaskMean):
    """Their weighted mean."""


class DareTies(_Drop, Election):
    """Those of them that agree with the elected sign."""


class DellaLinear(_DropByRank, TaskArithmetic):
    """The sum of what DELLA leaves."""


class DellaMean(_DropByRank, TaskMean):
    """Their weighted mean."""


class Della(_DropByRank, Election):
    """Those of them that agree with the elected sign: the method as published."""


class Breadcrumbs(_KeepMiddle, TaskArithmetic):
    """The sum of what Model Breadcrumbs leave: the method as published."""


class BreadcrumbsMean(_KeepMiddle, TaskMean):
    """Their weighted mean."""


class BreadcrumbsTies(_KeepMiddle, Election):
    """Those of them that agree with the elected sign."""
