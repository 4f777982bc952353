"""Weighted means and sums of the models themselves, and one model multiplied by a number. Element by element.

Each step is one rounding per element per operation (see ``average``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dopkit.methods.fold import Context, RunningFold
from dopkit.methods.interpolation_parameters import LinearParameters, PassthroughParameters


def _weight(ctx: Context) -> float:
    assert isinstance(ctx.parameters, LinearParameters)
    assert ctx.parameters.weight is not None, "the recipe gives every model a weight"
    return ctx.parameters.weight


class WeightedSum(RunningFold):
    """W = sum weight_i W_i: ``normalize: false``."""

    def start(self, base: Tensor | None, first: Tensor, ctx: Context) -> Tensor:
        return first.mul_(_weight(ctx))

    def step(self, state: Tensor, incoming: Tensor, ctx: Context) -> Tensor:
        state += incoming.mul_(_weight(ctx))
        return state


@dataclass
class FirstAndTotal:
    """The state of a weighted mean, told as a distance from one of its models."""

    first: Tensor
    total: Tensor  # sum of weight_i (W_i - first)


class WeightedMean:
    """W = sum weight_i W_i / sum weight_i, any shape.

    Found as W_1 + sum weight_i (W_i - W_1) / sum weight_i: where all models are equal, that is exact. Weights may be
    negative as long as all of them do not add up to zero.
    """

    def start(self, base: Tensor | None, first: Tensor, ctx: Context) -> FirstAndTotal:
        return FirstAndTotal(first, torch.zeros_like(first))

    def step(self, state: FirstAndTotal, incoming: Tensor, ctx: Context) -> FirstAndTotal:
        state.total += incoming.sub_(state.first).mul_(_weight(ctx))
        return state

    def finish(self, state: FirstAndTotal, ctx: Context) -> Tensor:
        """A new tensor. Weights that add up to zero, on the way to others, give the first model."""
        weights = sum(own.weight or 0.0 for own in ctx.so_far if isinstance(own, LinearParameters))
        return (state.total / weights if weights else torch.zeros_like(state.total)).add_(state.first)

    def pack(self, state: FirstAndTotal) -> dict[str, Tensor]:
        return {"first": state.first, "total": state.total}

    def unpack(self, base: Tensor | None, packed: Mapping[str, Tensor], ctx: Context) -> FirstAndTotal:
        """Of both; or of what was merged, which stands for all models that are in it."""
        if "merged" in packed:
            return FirstAndTotal(packed["merged"], torch.zeros_like(packed["merged"]))
        return FirstAndTotal(packed["first"], packed["total"])


class Passthrough:
    """W = scale * W_1, of one model."""

    def merge(self, base: Tensor | None, tensors: Sequence[Tensor], contexts: Sequence[Context]) -> Tensor:
        parameters = contexts[0].parameters
        assert isinstance(parameters, PassthroughParameters)
        return tensors[0].clone() if parameters.scale == 1 else tensors[0] * parameters.scale
