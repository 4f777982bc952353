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
from dopkit.methods.fold import Context
from dopkit.methods.projecting import ProjectingFold


class Opcm(ProjectingFold):
    """The fold of one 2-D matrix, in either orientation.

    With D = Wm - W0 = U S V^T, all triplets that can be told from zero, and tau = Wt - W0:

        Z = U^T tau V,    W = Wm + tau - U K V^T,    K = Z on its leading r x r block and its diagonal, else 0

    where r triplets hold the share ``alpha`` of the sum of singular values of D. What that gives at the edges:

    * The merged model equals the base: the incoming model. The incoming model equals the base: the merged one.
    * An incoming task vector that is a multiple of the merged one lies on the diagonal and adds nothing.
    * A value that is not finite: MergeError.
    """

    def project(self, tau: Tensor, merged: Tensor, ctx: Context) -> int:
        """Subtract U K V^T from ``tau``; return r."""
        parameters = ctx.parameters
        assert isinstance(parameters, OpcmParameters)
        found = spectra.triplets(merged)
        del merged
        rank = spectra.energy_rank(found.values, parameters.alpha, parameters.rank_rule)
        within = found.left.mT @ tau @ found.right.mT
        removed = torch.diag(within.diagonal())
        removed[:rank, :rank] = within[:rank, :rank]
        tau.addmm_(found.left @ removed, found.right, alpha=-1)
        return rank
