"""Model Stock: as far from the base to the mean of the models as the angle between their task vectors says.

Paper: Jang et al., Model Stock: All we need is just a few fine-tuned models, ECCV 2024,
https://arxiv.org/abs/2403.19522

The mean cosine over all pairs of N unit vectors u_i is (|| sum u_i ||^2 - N) / (N (N - 1)), so two sums will do and no
pair of models has to be in hand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dopkit.linalg.products import inner
from dopkit.methods.finite import refuse_not_finite
from dopkit.methods.fold import Context
from dopkit.methods.interpolation_parameters import ModelStockParameters


@dataclass
class Stock:
    """Sums over the models."""

    base: Tensor  # never written to
    total: Tensor  # of the task vectors, of the base's shape
    units: Tensor  # of the task vectors divided by their norms, of the base's shape
    moved: Tensor  # (rows, 1), or (1, 1) for a tensor as one: how many task vectors are not zero; the base's dtype


class ModelStock:
    """W = W0 + t * mean of the task vectors, t = N c / (1 + (N - 1) c), c the mean cosine of their pairs.

    Where they point away from each other (c < 0), which the paper's geometry does not have, t is 0: the formula would
    go the other way, and without bounds. ``filter_wise`` has a t for each row; a vector is one row.
    """

    def start(self, base: Tensor | None, first: Tensor, ctx: Context) -> Stock:
        """Raises ValueError without a base."""
        if base is None:
            raise ValueError("a fold of task vectors needs the base model's tensor")
        moved = base.new_zeros(_rows(base, ctx).shape[0], 1)
        return self.step(Stock(base, torch.zeros_like(base), torch.zeros_like(base), moved), first, ctx)

    def step(self, state: Stock, incoming: Tensor, ctx: Context) -> Stock:
        """Raises MergeError when a tensor holds NaN or infinity."""
        refuse_not_finite(base=state.base, incoming=incoming)
        state.total += incoming.sub_(state.base)
        rows = _rows(incoming, ctx)
        norms = inner(rows, rows, -1).sqrt()
        state.moved += norms > 0
        _rows(state.units, ctx).add_(rows / norms.masked_fill(norms == 0, 1).to(rows.dtype))
        return state

    def finish(self, state: Stock, ctx: Context) -> Tensor:
        """W, a new tensor. Records step and share, the mean of t over the rows."""
        if ctx.step == 1:
            return state.base + state.total
        units = _rows(state.units, ctx)
        count = ctx.step
        cosine = (inner(units, units, -1) - state.moved) / (count * (count - 1))
        cosine = cosine.clamp(0, 1)
        share = count * cosine / (1 + (count - 1) * cosine)
        if share.numel():
            ctx.record({"step": count, "share": float(share.mean())})
        return (_rows(state.total, ctx) * (share / count).to(state.base.dtype)).view_as(state.base).add_(state.base)

    def pack(self, state: Stock) -> dict[str, Tensor]:
        return {"total": state.total, "units": state.units, "moved": state.moved}

    def unpack(self, base: Tensor | None, packed: Mapping[str, Tensor], ctx: Context) -> Stock:
        if base is None:
            raise ValueError("a fold of task vectors needs the base model's tensor")
        return Stock(base, packed["total"], packed["units"], packed["moved"])


def _rows(tensor: Tensor, ctx: Context) -> Tensor:
    """The same memory as a matrix whose rows have an angle each."""
    assert isinstance(ctx.parameters, ModelStockParameters)
    single = not ctx.parameters.filter_wise or tensor.dim() < 2
    return tensor.view(1, tensor.numel()) if single else tensor.view(tensor.shape[0], math.prod(tensor.shape[1:]))
