"""TIES: trim each task vector, elect a sign for every entry, take the mean of those that agree with it.

Paper: Yadav et al., TIES-Merging: Resolving Interference When Merging Models, NeurIPS 2023,
https://arxiv.org/abs/2306.01708

The election sees all models, but what it needs of them are four sums. So this is the method over all models at once,
in memory that does not grow with them, and not a merge of merges.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dopkit.linalg.magnitude import INTEGERS
from dopkit.methods import trimming
from dopkit.methods.delta_parameters import ElectionParameters, TiesParameters
from dopkit.methods.finite import refuse_not_finite
from dopkit.methods.fold import Context


@dataclass
class Votes:
    """Sums over the models, all of the base's shape and dtype."""

    base: Tensor  # never written to
    positive: Tensor  # of the weighted trimmed entries above zero
    negative: Tensor  # of those below zero
    positive_weight: Tensor  # of the weights of the models with a weighted entry above zero
    negative_weight: Tensor


class Election(trimming.Untrimmed):
    """W = W0 + lambda * D, any shape, from the entries t_i that trimming leaves of the models' task vectors.

    * The elected sign is that of the sum of weight_i t_i; a sum of zero elects the positive one.
    * D is the sum of the weight_i t_i of that sign, divided by the sum of their weights (``normalize``).
    * A negative weight turns its model's vote and its contribution around. Weights that add up to zero where they
      are to divide are taken as 1.
    """

    def start(self, base: Tensor | None, first: Tensor, ctx: Context) -> Votes:
        """Raises ValueError without a base."""
        if base is None:
            raise ValueError("a fold of task vectors needs the base model's tensor")
        return self.step(Votes(base, *(torch.zeros_like(base) for _ in range(4))), first, ctx)

    def step(self, state: Votes, incoming: Tensor, ctx: Context) -> Votes:
        """Raises MergeError when a tensor holds NaN or infinity, which trimming might hide."""
        parameters = ctx.parameters
        assert isinstance(parameters, ElectionParameters)
        entries = self.trim(_task_vector(incoming, state.base), ctx)
        sums = (state.positive, state.negative, state.positive_weight, state.negative_weight)
        for entry, positive, negative, positive_weight, negative_weight in trimming.blocks(entries, *sums):
            above = entry.mul_(parameters.weight).clamp(min=0)
            positive += above
            positive_weight += above.sign_().mul_(parameters.weight)
            below = entry.clamp_(max=0)
            negative += below
            negative_weight += below.sign_().mul_(-parameters.weight)
        return state

    def finish(self, state: Votes, ctx: Context) -> Tensor:
        """W, a new tensor."""
        parameters = ctx.parameters
        assert isinstance(parameters, ElectionParameters)
        result = torch.empty_like(state.base)
        sums = (state.positive, state.negative, state.positive_weight, state.negative_weight)
        for merged, base, positive, negative, positive_weight, negative_weight in trimming.blocks(
            result, state.base, *sums
        ):
            total = positive + negative
            elected = _by_sign(total, positive, negative)
            if parameters.normalize:
                elected.div_(_divisor(_by_sign(total, positive_weight, negative_weight)))
            torch.add(elected.mul_(parameters.lambda_), base, out=merged)
        return result

    def pack(self, state: Votes) -> dict[str, Tensor]:
        return {
            "positive": state.positive,
            "negative": state.negative,
            "positive_weight": state.positive_weight,
            "negative_weight": state.negative_weight,
        }

    def unpack(self, base: Tensor | None, packed: Mapping[str, Tensor], ctx: Context) -> Votes:
        if base is None:
            raise ValueError("a fold of task vectors needs the base model's tensor")
        return Votes(base, **packed)


def _task_vector(incoming: Tensor, base: Tensor) -> Tensor:
    """``incoming - base``, in the memory of ``incoming``. Raises MergeError when either is not finite."""
    for own, theirs in trimming.blocks(incoming, base):
        difference = own - theirs
        if not all(math.isfinite(end) for end in torch.stack(torch.aminmax(difference)).tolist()):
            refuse_not_finite(base=theirs, incoming=own)
        own.copy_(difference)
    return incoming


def _divisor(weights: Tensor) -> Tensor:
    """The weights, in their memory, with 1 where they are below 1e-8 in magnitude."""
    bound = torch.nextafter(weights.new_tensor(1e-8), weights.new_zeros(()))
    torch.hardshrink(weights, float(bound), out=weights)
    return weights.add_(weights.sign().abs_().neg_().add_(1))


def _by_sign(of: Tensor, above: Tensor, below: Tensor) -> Tensor:
    """Where ``of`` is below zero ``below``, else ``above``; ``of`` holds no negative zero, as no sum of two numbers of
    which one is not negative and one is not positive does.

    A choice by bits: where every other element chooses otherwise, a choice by a mask costs a misprediction each.
    """
    bits = INTEGERS[of.dtype]
    one, other = above.view(bits), below.view(bits)
    return (one ^ ((one ^ other) & (of.view(bits) >> (8 * of.element_size() - 1)))).view(of.dtype)


class Ties(Election):
    """Of each tensor of n entries the floor(density * n) of largest magnitude go to the election, one at least."""

    def trim(self, entries: Tensor, ctx: Context) -> Tensor:
        parameters = ctx.parameters
        assert isinstance(parameters, TiesParameters)
        if not parameters.rescale:
            return trimming.keep_largest(entries, parameters.density)
        before = trimming.sum_of_magnitudes(entries)
        return trimming.restore_sum(trimming.keep_largest(entries, parameters.density), before)
