"""ACE: each task vector weighted by the covariance of the inputs that it gives away, in closed form.

Paper: Xu et al., ACE-Merging: Data-Free Model Merging with Adaptive Covariance Estimation, CVPR 2026,
https://arxiv.org/abs/2603.02945

A task vector's rows are taken for samples of its task's inputs. All that the method needs of the tasks are sums, so
it is a fold; what depends on how different the tasks are is kept both ways until the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dopkit.linalg import spectra
from dopkit.methods.dop_terms import sides_of
from dopkit.methods.finite import refuse_not_finite
from dopkit.methods.fold import Context
from dopkit.methods.spectral_parameters import AceParameters


@dataclass
class Covariances:
    """Sums over the tasks whose task vector is not zero, float64; n is the input side, m the output side.

    S_t is the covariance of tau_t, s_t its trace; the second three sums are of tasks divided by s_t.
    """

    base: Tensor  # as stored, never written to
    covariance: Tensor  # sum S_t
    product: Tensor  # sum tau_t S_t
    total: Tensor  # sum tau_t
    even_covariance: Tensor
    even_product: Tensor
    even_total: Tensor
    numbers: Tensor  # (5,): tasks, and sums of log ||tau_t||^2, of its square, of ||tau_t||^2, of 1 / s_t


class Ace:
    """W = W0 + D, D = (sum tau_t (S_t + e)) (sum (S_t + e) + 1 c^T)^-1, with c the mean row of sum S_t.

    S_t is the covariance of the rows of tau_t (n x n, not divided by their number), e is ``epsilon``. Where the sizes
    of the task vectors differ (the variance of log ||tau_t||^2 is above ``gamma`` times its squared mean), S_t and e
    are divided by the trace of S_t, c by the mean of ||tau_t||^2, and what that evens out too much is added: the
    leading directions of D + sum tau_t (S_t - mean (S_t + e)), the share ``k_share`` of them, at their mean singular
    value.
    """

    def start(self, base: Tensor | None, first: Tensor, ctx: Context) -> Covariances:
        """Raises ValueError without a base."""
        if base is None:
            raise ValueError("a fold of task vectors needs the base model's tensor")
        outputs, inputs = _oriented(base, ctx).shape

        def zeros(*shape: int) -> Tensor:
            return base.new_zeros(shape, dtype=spectra.working_dtype(base.device))

        state = Covariances(
            base,
            zeros(inputs, inputs), zeros(outputs, inputs), zeros(outputs, inputs),
            zeros(inputs, inputs), zeros(outputs, inputs), zeros(outputs, inputs),
            zeros(5),
        )  # fmt: skip
        return self.step(state, first, ctx)

    def step(self, state: Covariances, incoming: Tensor, ctx: Context) -> Covariances:
        """Raises MergeError when a matrix holds NaN or infinity. A task vector of zero adds nothing."""
        refuse_not_finite(base=state.base, incoming=incoming)
        tau = _oriented(incoming.to(state.total.dtype, copy=True).sub_(state.base), ctx)
        del incoming
        size = float(tau.square().sum())
        centred = tau - tau.mean(0, keepdim=True) if tau.shape[0] else tau
        covariance = centred.mT @ centred
        del centred
        trace = float(covariance.trace())
        if trace <= 1e-14 * size:  # rows that are all alike have no covariance; rounding is none
            return state
        product = tau @ covariance
        state.covariance += covariance
        state.product += product
        state.total += tau
        state.even_covariance += covariance.div_(trace)
        state.even_product += product.div_(trace)
        state.even_total += tau.div_(trace)
        log = torch.tensor(size, dtype=torch.float64).log().item()
        state.numbers += state.numbers.new_tensor([1.0, log, log * log, size, 1 / trace])
        return state

    def finish(self, state: Covariances, ctx: Context) -> Tensor:
        """W, a new tensor. Records step and heterogeneity."""
        parameters = ctx.parameters
        assert isinstance(parameters, AceParameters)
        count, logs, squares, sizes, traces = state.numbers.tolist()
        if not count:
            return state.base.clone()
        spread = (squares - logs * logs / count) / (count - 1) if count > 1 else 0.0
        heterogeneity = max(0.0, spread) / ((logs / count) ** 2 + 1e-12)
        ctx.record({"step": ctx.step, "heterogeneity": heterogeneity})
        uneven = heterogeneity > parameters.gamma
        if uneven:
            merged = _uneven(state, parameters, int(count), sizes / count, traces)
        else:
            ridge = parameters.epsilon * count
            merged = _weighted(state.covariance, state.product + parameters.epsilon * state.total, ridge, 1.0)
        return _oriented(merged, ctx).add(state.base).to(state.base.dtype)

    def pack(self, state: Covariances) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in vars(state).items() if name != "base"}

    def unpack(self, base: Tensor | None, packed: Mapping[str, Tensor], ctx: Context) -> Covariances:
        if base is None:
            raise ValueError("a fold of task vectors needs the base model's tensor")
        return Covariances(base, **packed)


def _oriented(tensor: Tensor, ctx: Context) -> Tensor:
    """A stored matrix with its input side last, or the other way round."""
    return tensor if sides_of("v", ctx.role).columns else tensor.mT


def _weighted(covariance: Tensor, product: Tensor, ridge: float, prior: float) -> Tensor:
    """product (covariance + ridge + 1 c^T)^-1, c the mean row of ``covariance`` times ``prior``."""
    whole = covariance + prior * covariance.mean(0, keepdim=True)
    whole.diagonal().add_(ridge)
    solved: Tensor = torch.linalg.solve(whole, product, left=False)
    return solved


def _uneven(state: Covariances, parameters: AceParameters, count: int, size: float, traces: float) -> Tensor:
    ridge = parameters.epsilon * traces
    product = state.even_product + parameters.epsilon * state.even_total
    merged = _weighted(state.even_covariance, product, ridge, 1 / size)
    evened = state.total @ (state.even_covariance / count)
    evened.add_(state.total, alpha=ridge / count)
    found = spectra.triplets(state.even_product - evened + merged)
    rank = min(int(parameters.k_share * min(merged.shape)), found.values.numel())
    if rank:
        merged.add_(found.left[:, :rank] @ found.right[:rank], alpha=float(found.values[:rank].mean()))
    return merged
