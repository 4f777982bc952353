"""Fisher merging: the mean of the models in which every weight counts as much as it matters to its model.

    W = sum f_t W_t / sum f_t,    f_t = weight_t max(F_t / size_t, epsilon),    element by element

with F_t the diagonal of model t's Fisher information, and size_t its root mean square over the whole model (Matena and
Raffel, Merging Models with Fisher-Weighted Averaging, NeurIPS 2022, https://arxiv.org/abs/2111.09832). It is the
maximum of the product of the models' posteriors, each a Gaussian around its weights with precision f_t.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from dopkit.methods.fisher_parameters import FisherParameters
from dopkit.methods.fold import Context


@dataclass
class MergedAndTotal:
    """The state: the mean of the models so far, and the sum of what they count."""

    merged: Tensor
    total: Tensor  # sum of f_t, above zero everywhere


class Fisher:
    """The running form m += (x - m) f / sum f, any shape.

    Equal models give exactly that model. Each step is one rounding per element per operation (see ``average``).
    """

    def start(self, base: Tensor | None, first: Tensor, ctx: Context) -> MergedAndTotal:
        return MergedAndTotal(first, _importance(ctx))

    def step(self, state: MergedAndTotal, incoming: Tensor, ctx: Context) -> MergedAndTotal:
        share = _importance(ctx)
        state.total += share
        share /= state.total
        state.merged += incoming.sub_(state.merged).mul_(share)
        return state

    def finish(self, state: MergedAndTotal, ctx: Context) -> Tensor:
        return state.merged

    def pack(self, state: MergedAndTotal) -> dict[str, Tensor]:
        return {"merged": state.merged, "total": state.total}

    def unpack(self, base: Tensor | None, packed: Mapping[str, Tensor], ctx: Context) -> MergedAndTotal:
        return MergedAndTotal(packed["merged"], packed["total"])


def _importance(ctx: Context) -> Tensor:
    """f of the incoming model. Without a size the Fisher is taken as it is."""
    parameters, fisher = ctx.parameters, ctx.companions["fisher"]
    assert isinstance(parameters, FisherParameters)
    return fisher.div_(ctx.sizes.get("fisher", 1.0)).clamp_(min=parameters.epsilon).mul_(parameters.weight)
