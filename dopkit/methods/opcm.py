"""OPCM: what an incoming task vector shares with the merged one is projected away, the rest is added.

Paper: Tang et al., Merging Models on the Fly Without Retraining: A Sequential Approach to Scalable Continual Model
Merging, NeurIPS 2025, https://arxiv.org/abs/2501.09522

The published procedure divides the merged task vector of the whole model by lambda_t at each step and multiplies it by
lambda_t before the next one. Singular vectors and shares of energy do not change with a factor, so the factors cancel
until the end: this fold adds projections without any, and the one scale of the whole model comes last, outside.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dopkit.linalg import spectra
from dopkit.methods.continual_parameters import OpcmParameters
from dopkit.methods.finite import refuse_not_finite
from dopkit.methods.fold import BaseAndMerged, Context, TaskVectorFold


class Opcm(TaskVectorFold):
    """The fold of one 2-D matrix, in either orientation.

    With D = Wm - W0 = U S V^T, all triplets that can be told from zero, and tau = Wt - W0:

        Z = U^T tau V,    W = Wm + tau - U K V^T,    K = Z on its leading r x r block and its diagonal, else 0

    where r triplets hold the share ``alpha`` of the sum of singular values of D. What that gives at the edges:

    * The merged model equals the base: the incoming model. The incoming model equals the base: the merged one.
    * An incoming task vector that is a multiple of the merged one lies on the diagonal and adds nothing.
    * A value that is not finite: MergeError.
    """

    def step(self, state: BaseAndMerged, incoming: Tensor, ctx: Context) -> BaseAndMerged:
        """Add the projection of ``incoming``.

        Records step, rank_merged (r), and the Frobenius norms norm_incoming (of tau) and norm_added (of what is left
        of it). Raises MergeError when a matrix holds NaN or infinity.
        """
        parameters = ctx.parameters
        assert isinstance(parameters, OpcmParameters)
        refuse_not_finite(base=state.base, merged=state.merged, incoming=incoming)
        dtype = spectra.working_dtype(incoming.device)
        tau = incoming.to(dtype, copy=True).sub_(state.base)
        del incoming
        norm = float(tau.norm())
        rank = _project(tau, state.merged.to(dtype, copy=True).sub_(state.base), parameters)
        ctx.record({"step": ctx.step, "rank_merged": rank, "norm_incoming": norm, "norm_added": float(tau.norm())})
        state.merged.copy_(tau.add_(state.merged))  # rounds once
        return state


def _project(tau: Tensor, merged: Tensor, parameters: OpcmParameters) -> int:
    """Subtract U K V^T from ``tau``; return r."""
    if not bool(merged.any()):
        return 0
    found = spectra.triplets(merged)
    del merged
    rank = spectra.energy_rank(found.values, parameters.alpha, parameters.rank_rule)
    within = found.left.mT @ tau @ found.right.mT
    removed = torch.diag(within.diagonal())
    removed[:rank, :rank] = within[:rank, :rank]
    tau.addmm_(found.left @ removed, found.right, alpha=-1)
    return rank
