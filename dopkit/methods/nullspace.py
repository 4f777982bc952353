"""Null-space merging: of an incoming task vector, what acts on inputs that the merged one does not use.

Source: Qiu et al., Null-Space Filtering for Data-Free Continual Model Merging, ICLR 2026,
https://arxiv.org/abs/2509.21413, in the ablation without optimisation, which
projects on the inputs outside of 128 leading directions; here their number follows from their energy.
"""

from __future__ import annotations

from torch import Tensor

from dopkit.linalg import spectra
from dopkit.methods.continual_parameters import NullspaceParameters
from dopkit.methods.fold import Context
from dopkit.methods.projecting import ProjectingFold
from dopkit.roles import TRANSPOSED


class Nullspace(ProjectingFold):
    """The fold of one 2-D matrix, (out, in), or (in, out) for Role.CONV1D: W = Wm + tau (I - V V^T).

    V holds the leading right singular vectors of Wm - W0 that hold ``svd_epsilon`` of the sum of its singular values.

    * The merged model equals the base: the incoming model. The incoming model equals the base: the merged one.
    * A value that is not finite: MergeError.
    """

    def project(self, tau: Tensor, merged: Tensor, ctx: Context) -> int:
        """Take from ``tau`` what acts on the inputs that the merged task vector uses; return how many directions."""
        parameters = ctx.parameters
        assert isinstance(parameters, NullspaceParameters)
        turned = ctx.role in TRANSPOSED
        found = spectra.triplets(merged.mT if turned else merged)
        del merged
        rank = spectra.energy_rank(found.values, parameters.svd_epsilon, parameters.rank_rule)
        used, acting = found.right[:rank], tau.mT if turned else tau
        acting.addmm_(acting @ used.mT, used, alpha=-1)
        return rank
