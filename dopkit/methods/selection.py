"""Merges that choose entries: by their distance from the base, their importance, or who else changed them.

Each joint merge has all models in hand; RAM is a sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dopkit.linalg.magnitude import kth_largest
from dopkit.linalg.products import inner
from dopkit.methods.delta_parameters import RamParameters, RamPlusParameters, SceParameters
from dopkit.methods.finite import refuse_not_finite
from dopkit.methods.fold import Context
from dopkit.methods.interpolation_parameters import NearswapParameters

BLOCK = 1 << 20  # entries looked at together


class Nearswap:
    """W = W0 + tau, each entry cut to t: what is near the base is swapped, the rest moves towards the model."""

    def merge(self, base: Tensor | None, tensors: Sequence[Tensor], contexts: Sequence[Context]) -> Tensor:
        """Raises MergeError when a tensor holds NaN or infinity, which a cut would hide."""
        parameters = contexts[0].parameters
        assert isinstance(parameters, NearswapParameters) and base is not None
        refuse_not_finite(base=base, incoming=tensors[0])
        distance = tensors[0] - base
        near = distance.abs() <= parameters.t
        return torch.where(near, tensors[0], distance.clamp_(-parameters.t, parameters.t).add_(base))


class ArceeFusion:
    """The model's entries where they matter, the base's elsewhere.

    An entry matters by |W_1 - W0| times the Kullback-Leibler divergence of its row (along the last axis): softmax of
    the model's from that of the base's. It is taken from median + 1.5 (upper - lower quartile) on; a quantile is the
    entry of that rank, rounded down.
    """

    def merge(self, base: Tensor | None, tensors: Sequence[Tensor], contexts: Sequence[Context]) -> Tensor:
        """Raises MergeError when a tensor holds NaN or infinity. Records kept, the share that is the model's."""
        assert base is not None
        refuse_not_finite(base=base, incoming=tensors[0])
        if not base.numel():
            return base.clone()
        importance = _importance(base, tensors[0])
        median, lower, upper = (_quantile(importance, share) for share in (0.5, 0.25, 0.75))
        chosen = importance >= median + 1.5 * (upper - lower)
        contexts[0].record({"step": 1, "kept": float(chosen.double().mean())})
        return torch.where(chosen, tensors[0], base)


def _importance(base: Tensor, model: Tensor) -> Tensor:
    """Of every entry, float64; the divergences of rows that hardly differ are differences of nearly equal numbers."""
    columns = base.shape[-1] if base.dim() else 1
    rows = [tensor.reshape(-1, columns) for tensor in (base, model)]
    found = torch.empty_like(rows[0], dtype=torch.float64)
    height = max(1, BLOCK // max(1, columns))
    for start in range(0, found.shape[0], height):
        own, other = (tensor[start : start + height].double() for tensor in rows)
        ours, theirs = own.log_softmax(-1), other.log_softmax(-1)
        divergence = (theirs.exp() * (theirs - ours)).sum(-1, keepdim=True).clamp_(min=0)
        torch.mul((other - own).abs_(), divergence, out=found[start : start + height])
    return found.view_as(base)


def _quantile(magnitudes: Tensor, share: float) -> Tensor:
    number = magnitudes.numel()
    return kth_largest(magnitudes, number - int(share * (number - 1)))


class Sce:
    """SCE: of the task vectors those entries that vary most, weighted by their energy, where they agree in sign.

    Select: the floor(select_topk * n) entries of largest variance over the models, one at least. Calculate: a model's
    weight is its share of the squares of what is selected. Erase: what has not the sign of the sum. Then the weighted
    mean of the rest. Paper: Wan et al., FuseChat, 2024, https://arxiv.org/abs/2408.07990
    """

    def merge(self, base: Tensor | None, tensors: Sequence[Tensor], contexts: Sequence[Context]) -> Tensor:
        """Raises MergeError when a tensor holds NaN or infinity."""
        parameters = contexts[-1].parameters
        assert isinstance(parameters, SceParameters) and base is not None
        refuse_not_finite(base=base, incoming=torch.stack([_ends(tensor) for tensor in tensors]))
        selected = _varying(base, tensors, parameters.select_topk)
        total, energies = torch.zeros_like(base), []
        for tensor in tensors:
            delta = (tensor - base).mul_(selected)
            energies.append(float(inner(delta, delta)))
            total += delta
        elected = total.ge_(0).mul_(2).sub_(1)  # in its own place: 1 or -1
        merged, weights = torch.zeros_like(base), torch.zeros_like(base)
        for tensor, energy in zip(tensors, energies, strict=True):
            share = energy / (sum(energies) or 1.0)
            delta = (tensor - base).mul_(selected)
            agrees = (delta.sign() == elected).to(base.dtype)
            merged += delta.mul_(agrees).mul_(share)
            weights += agrees.mul_(share)
        return merged.div_(weights.masked_fill_(weights < 1e-6, 1e-6)).add_(base)


def _ends(tensor: Tensor) -> Tensor:
    """The smallest and the largest value; NaN if any is."""
    return torch.stack(torch.aminmax(tensor)) if tensor.numel() else tensor.new_zeros(2)


def _varying(base: Tensor, tensors: Sequence[Tensor], share: float) -> Tensor:
    """Which entries have the largest variance over the models, as zeros and ones; a scalar one for all of them."""
    if share >= 1 or not base.numel():
        return base.new_ones(())
    mean, variance = torch.zeros_like(base), torch.zeros_like(base)
    for tensor in tensors:
        mean += tensor - base
    mean /= len(tensors)
    for tensor in tensors:
        variance += (tensor - base).sub_(mean).square_()
    return (variance >= kth_largest(variance, max(1, int(share * variance.numel())))).to(base.dtype)


@dataclass
class Changes:
    """What RAM keeps: sums over the models, of the base's shape and dtype."""

    base: Tensor  # never written to
    total: Tensor  # of the entries that a model changed
    models: Tensor  # how many did


class Ram:
    """W = W0 + the mean of the task vectors of those models that changed the entry by more than epsilon. Any shape.

    Source: Behavior Knowledge Merge in Reinforced Agentic Models, 2026, https://arxiv.org/abs/2601.13572
    """

    def start(self, base: Tensor | None, first: Tensor, ctx: Context) -> Changes:
        """Raises ValueError without a base."""
        if base is None:
            raise ValueError("a fold of task vectors needs the base model's tensor")
        return self.step(Changes(base, torch.zeros_like(base), torch.zeros_like(base)), first, ctx)

    def step(self, state: Changes, incoming: Tensor, ctx: Context) -> Changes:
        """Raises MergeError when a tensor holds NaN or infinity."""
        assert isinstance(ctx.parameters, RamParameters)
        refuse_not_finite(base=state.base, incoming=incoming)
        changed = (incoming.sub_(state.base).abs() > ctx.parameters.epsilon).to(state.base.dtype)
        state.total += incoming.mul_(changed)
        state.models += changed
        return state

    def finish(self, state: Changes, ctx: Context) -> Tensor:
        """W, a new tensor."""
        return (state.total / state.models.clamp(min=1)).add_(state.base)

    def pack(self, state: Changes) -> dict[str, Tensor]:
        return {"total": state.total, "models": state.models}

    def unpack(self, base: Tensor | None, packed: Mapping[str, Tensor], ctx: Context) -> Changes:
        if base is None:
            raise ValueError("a fold of task vectors needs the base model's tensor")
        return Changes(base, packed["total"], packed["models"])


class RamPlus:
    """RAM, where entries that one model alone changed are multiplied by 1 + r * min(rho, alpha).

    rho is that model's number of entries that others changed too, over the number that it changed alone.
    """

    def merge(self, base: Tensor | None, tensors: Sequence[Tensor], contexts: Sequence[Context]) -> Tensor:
        """Raises MergeError when a tensor holds NaN or infinity."""
        parameters = contexts[-1].parameters
        assert isinstance(parameters, RamPlusParameters) and base is not None
        refuse_not_finite(base=base, incoming=torch.stack([_ends(tensor) for tensor in tensors]))
        models = torch.zeros_like(base)
        for tensor in tensors:
            models += (tensor - base).abs_() > parameters.epsilon
        alone, total = models == 1, torch.zeros_like(base)
        for tensor in tensors:
            delta = tensor - base
            changed = delta.abs() > parameters.epsilon
            own = int(torch.count_nonzero(changed & alone))
            common = int(torch.count_nonzero(changed)) - own
            growth = 1 + parameters.r * min(common / own if own else 0.0, parameters.alpha)
            total += delta.mul_(changed).mul_(torch.where(alone, growth, 1.0).to(base.dtype))
        return total.div_(models.clamp_(min=1)).add_(base)
