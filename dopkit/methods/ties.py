"""TIES: trim each task vector, elect a sign for every entry, take the mean of those that agree with it.

Paper: Yadav et al., TIES-Merging: Resolving Interference When Merging Models, NeurIPS 2023,
https://arxiv.org/abs/2306.01708

The election sees all models, but what it needs of them are four sums. So this is the method over all models at once,
in memory that does not grow with them, and not a merge of merges. On a CPU, up to four models are kept as they come, in
the memory that the sums would take: they are counted block by block in a core's cache, and the sums never leave it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dopkit.linalg.magnitude import INTEGERS, near_quantile, sample_step
from dopkit.methods import trimming
from dopkit.methods.delta_parameters import ElectionParameters, TiesParameters
from dopkit.methods.finite import refuse_not_finite
from dopkit.methods.fold import Context, Whole


@dataclass(frozen=True)
class Vote:
    """What a model brings to the election."""

    entries: Tensor  # of its task vector
    bound: float | None  # those that are not larger than this are left out; None: trimmed already
    weight: float


@dataclass(frozen=True)
class Survey:
    """What trimming must know of a whole task vector."""

    bound: float | None  # as of a ``Vote``


@dataclass
class Votes:
    """All that was brought: first what is added up, then what waits to be. All of the base's shape and dtype."""

    base: Tensor  # never written to
    # Over the models: the weighted trimmed entries above zero, those below zero, and the weights of either. Or nothing.
    sums: list[Tensor]
    waiting: list[Vote]


SUMS = ("positive", "negative", "positive_weight", "negative_weight")


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
        sums = [] if base.device.type == "cpu" else [torch.zeros_like(base) for _ in SUMS]
        return self.step(Votes(base, sums, []), first, ctx)

    def step(self, state: Votes, incoming: Tensor, ctx: Context) -> Votes:
        """Raises MergeError when a tensor holds NaN or infinity, which trimming might hide."""
        parameters = ctx.parameters
        assert isinstance(parameters, ElectionParameters)
        entries = _task_vector(incoming, state.base)
        bound = ctx.survey.bound if isinstance(ctx.survey, Survey) else None
        kept = (entries, bound) if ctx.survey is not None else self.kept(entries, ctx)
        vote = Vote(*kept, parameters.weight)
        if not state.sums and len(state.waiting) == len(SUMS):
            _add_up(state)
        if state.sums:
            for entries, *sums in trimming.blocks(vote.entries, *state.sums):
                _count(vote, entries, sums)
        else:
            state.waiting.append(vote)
        return state

    def kept(self, entries: Tensor, ctx: Context) -> tuple[Tensor, float | None]:
        """The entries of a task vector, and the bound of those that are still to be left out, if any."""
        return self.trim(entries, ctx), None

    def finish(self, state: Votes, ctx: Context) -> Tensor:
        """W, a new tensor."""
        parameters = ctx.parameters
        assert isinstance(parameters, ElectionParameters)
        result = torch.empty_like(state.base)
        positive_only = not state.sums and all(vote.weight >= _LEAST for vote in state.waiting)
        for merged, base, *sums in _counted(state, result, state.base):
            positive, negative, positive_weight, negative_weight = sums
            total = positive + negative  # never a negative zero, of one that is not negative and one not positive
            lost = total.view(INTEGERS[total.dtype]).bitwise_right_shift_(8 * total.element_size() - 1)
            elected = _by_sign(lost, positive, negative)
            if parameters.normalize:
                elected.div_(_divisor(_by_sign(lost, positive_weight, negative_weight), positive_only))
            if parameters.lambda_ != 1:
                elected *= parameters.lambda_
            torch.add(elected, base, out=merged)
        return result

    def pack(self, state: Votes) -> dict[str, Tensor]:
        if not state.sums:
            _add_up(state)
        return dict(zip(SUMS, state.sums, strict=True))

    def unpack(self, base: Tensor | None, packed: Mapping[str, Tensor], ctx: Context) -> Votes:
        if base is None:
            raise ValueError("a fold of task vectors needs the base model's tensor")
        return Votes(base, [packed[name] for name in SUMS], [])


def _add_up(state: Votes) -> None:
    """The sums of what waits, in its memory."""
    places = [vote.entries for vote in state.waiting]
    places += [torch.empty_like(state.base) for _ in range(len(SUMS) - len(places))]
    for (*own,) in _counted(state, *places):
        for place, counted in zip(own[: len(SUMS)], own[len(SUMS) :], strict=True):
            place.copy_(counted)
    state.sums, state.waiting = places, []


def _counted(state: Votes, *beside: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Blocks of the tensors ``beside``, each with the four sums up to all that waits, which are not the state's own."""
    number = len(beside)
    if state.sums:
        for (*blocks,) in trimming.blocks(*beside, *state.sums):
            yield (*blocks[:number], *(counted.clone() for counted in blocks[number:]))
        return
    for (*blocks,) in trimming.blocks(*beside, *(vote.entries for vote in state.waiting)):
        sums = [torch.zeros_like(blocks[0]) for _ in SUMS]
        for vote, entries in zip(state.waiting, blocks[number:], strict=True):
            _count(vote, entries, sums)
        yield (*blocks[:number], *sums)


def _count(vote: Vote, entries: Tensor, sums: Sequence[Tensor]) -> None:
    """Add some entries of a vote to the four sums; they stay as they are.

    A sign is a whole number, so its product with a weight is exact, whether it is rounded before it is added or not.
    """
    positive, negative, positive_weight, negative_weight = sums
    entries = entries if vote.bound is None else torch.hardshrink(entries, vote.bound)
    if vote.weight != 1:
        entries = entries * vote.weight
    above = entries.clamp(min=0)
    positive += above
    positive_weight.add_(above.sign_(), alpha=vote.weight)
    below = torch.clamp(entries, max=0, out=above)
    negative += below
    negative_weight.add_(below.sign_(), alpha=-vote.weight)


def _task_vector(incoming: Tensor, base: Tensor) -> Tensor:
    """``incoming - base``, in the memory of ``incoming``. Raises MergeError when either is not finite."""
    for own, theirs in trimming.blocks(incoming, base):
        flat = own.sub_(theirs).reshape(-1)
        if not math.isfinite(torch.dot(flat, flat)):  # not for sure: squares are larger
            refuse_not_finite(base=theirs, incoming=own)
    return incoming


_LEAST = 1e-8


def _divisor(weights: Tensor, positive_only: bool) -> Tensor:
    """The weights, in their memory, with 1 where they are below 1e-8 in magnitude; where all that were added up are
    above it, that is where there are none: nothing was added up there, and the divisor is all the same."""
    if positive_only:
        return weights.clamp_(min=_LEAST)
    bound = torch.nextafter(weights.new_tensor(_LEAST), weights.new_zeros(()))
    torch.hardshrink(weights, float(bound), out=weights)
    return weights.add_(weights.sign().abs_().neg_().add_(1))


def _by_sign(negative: Tensor, above: Tensor, below: Tensor) -> Tensor:
    """Where all bits of ``negative`` are set ``below``, where none is ``above``; in the memory of ``below``.

    A choice by bits: where every other element chooses otherwise, a choice by a mask costs a misprediction each.
    """
    one, other = above.view(negative.dtype), below.view(negative.dtype)
    other.bitwise_xor_(one).bitwise_and_(negative).bitwise_xor_(one)
    return below


class Ties(Election):
    """Of each tensor of n entries the floor(density * n) of largest magnitude go to the election, one at least."""

    def trim(self, entries: Tensor, ctx: Context) -> Tensor:
        parameters = ctx.parameters
        assert isinstance(parameters, TiesParameters)
        if not parameters.rescale:
            return trimming.keep_largest(entries, parameters.density)
        before = trimming.sum_of_magnitudes(entries)
        return trimming.restore_sum(trimming.keep_largest(entries, parameters.density), before)

    def kept(self, entries: Tensor, ctx: Context) -> tuple[Tensor, float | None]:
        parameters = ctx.parameters
        assert isinstance(parameters, TiesParameters)
        if parameters.rescale or not 0 < parameters.density < 1 or not entries.numel():
            return super().kept(entries, ctx)
        return entries, trimming.bound_of_largest(entries, parameters.density)

    def survey(self, whole: Whole, ctx: Context) -> Survey | None:
        """Where a task vector is trimmed, if a sample of it tells."""
        parameters = ctx.parameters
        assert isinstance(parameters, TiesParameters)
        if parameters.density >= 1:
            return Survey(None)
        if parameters.rescale or parameters.density == 0:
            return None
        step = sample_step(whole.numel)
        base, model = whole.sample(step)
        magnitudes = (model.sub_(base).abs_().numpy() for base, model in whole.blocks())
        count = trimming.count_of_largest(whole.numel, parameters.density)
        found = near_quantile(model.sub_(base).numpy(), whole.numel, count, magnitudes)
        return None if found is None else Survey(trimming.bound_above(base.new_tensor(found)))
