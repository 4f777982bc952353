"""DOP: continual merging with dual orthogonal projections, one weight matrix at a time.

An incoming model is folded into what is merged so far by minimising a stability loss (distance to the merged
model, in the directions its task vector uses) against a plasticity loss (the same for the incoming model).
Only the merged weights are carried from model to model. Two solvers, one objective: ``dop_exact`` in closed
form for a fixed alpha, ``dop_adam`` as published.

Paper: Yang et al., Continual Model Merging without Data: Dual Projections for Balancing Stability and
Plasticity, NeurIPS 2025, https://openreview.net/forum?id=zD5cUX67b9

This module does not know names of tensors, files or models: it sees three matrices and the parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dopkit.linalg import spectra
from dopkit.linalg.parking import Park
from dopkit.linalg.products import gram
from dopkit.methods import dop_adam, dop_exact
from dopkit.methods.dop_terms import Losses, Solved, sides_of
from dopkit.methods.finite import refuse_not_finite
from dopkit.methods.fold import BaseAndMerged, Context, TaskVectorFold
from dopkit.methods.parameters import DopParameters


class Dop(TaskVectorFold):
    """The fold of one 2-D float32 matrix, (out, in), or (in, out) for Role.CONV1D.

    The first model is taken as it is. What comes out where the objective says little:

    * Two equal models: that matrix, bit for bit.
    * The incoming model equals the base (a frozen layer), or its projections have rank 0: its loss is zero
      everywhere, so it has no say where the merged model's task vector has one. ``exact`` gives the merged
      model, up to rounding, apart from the directions that ``svd_epsilon`` cuts off, which are averaged.
      ``adam`` moves from the average towards the merged model as far as its steps carry.
    * The merged model equals the base: the incoming model, in the same sense.
    * Both have rank 0, or the only loss that counts (alpha 0 or 1) is zero everywhere: their average.
    * A value that is not finite: MergeError.
    """

    def step(self, state: BaseAndMerged, incoming: Tensor, ctx: Context) -> BaseAndMerged:
        """Merge ``incoming`` with alpha = ``ctx.parameters.alpha_at(ctx.step)``; may overwrite both models.

        Records one dict: step, weight (of stability, at the end), rank_merged, rank_incoming, and before
        (at the average of the two models) and after: stability (L_0), plasticity (L_1) and objective, which
        is alpha L_0 + (1 - alpha) L_1 with the alpha given, also where ``adam`` moves its weight.

        Raises MergeError when a matrix holds NaN or infinity.
        """
        parameters = ctx.parameters
        assert isinstance(parameters, DopParameters)
        refuse_not_finite(base=state.base, merged=state.merged, incoming=incoming)
        alpha = parameters.alpha_at(ctx.step)
        if torch.equal(state.merged, incoming):
            solved = _nothing_to_solve(state, incoming, alpha, parameters, ctx.park)
        else:
            solved = _solve(state, incoming, alpha, parameters, ctx)
        ctx.record(_record(ctx.step, alpha, solved))
        return state


def _solve(state: BaseAndMerged, incoming: Tensor, alpha: float, parameters: DopParameters, ctx: Context) -> Solved:
    """Replace ``state.merged`` by the merge."""
    sides = sides_of(parameters.svd_proj_space, ctx.role)
    base, merged = state.base, state.merged
    tall = base.shape[0] > base.shape[1]
    if tall:  # the solvers want the smaller side first
        base, merged, incoming = base.mT, merged.mT, incoming.mT
        sides = sides.turned()
    if parameters.solver == "exact":
        epsilon, rule = parameters.svd_epsilon, parameters.rank_rule
        return dop_exact.minimise(base, merged, incoming, alpha, epsilon, rule, sides, ctx.park)
    result, solved = dop_adam.minimise(base, merged, incoming, alpha, parameters, sides)
    state.merged = result.mT if tall else result
    return solved


def _nothing_to_solve(
    state: BaseAndMerged, incoming: Tensor, alpha: float, parameters: DopParameters, park: Park
) -> Solved:
    """Two equal models: both losses are zero where they are; only the rank is left to find."""
    tau = state.merged.to(spectra.working_dtype(state.merged.device), copy=True).sub_(state.base)
    models = state.base, state.merged, incoming
    park.away(*models)
    if tau.shape[0] > tau.shape[1]:
        tau = tau.mT
    rank = 0
    if bool(tau.any()):
        product = gram(tau)
        del tau
        rank = spectra.leading_directions(product, parameters.svd_epsilon, parameters.rank_rule).rank
    park.here(*models)
    park.forget()
    return Solved(Losses(0.0, 0.0), Losses(0.0, 0.0), (rank, rank), alpha)


def _record(step: int, alpha: float, solved: Solved) -> dict[str, float | int]:
    before, after = solved.before, solved.after
    return {
        "step": step,
        "objective_before": before.weighted(alpha),
        "objective_after": after.weighted(alpha),
        "stability_before": before.stability,
        "stability_after": after.stability,
        "plasticity_before": before.plasticity,
        "plasticity_after": after.plasticity,
        "rank_merged": solved.ranks[0],
        "rank_incoming": solved.ranks[1],
        "weight": solved.weight,
    }
