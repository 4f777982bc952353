"""What the folds share that add the incoming task vector less a projection of it: how a step runs, and what it records.

Which directions are taken away, and by what they are found, is each fold's own business.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from dopkit.linalg import spectra
from dopkit.methods.finite import refuse_not_finite
from dopkit.methods.fold import BaseAndMerged, Context, TaskVectorFold


class ProjectingFold(TaskVectorFold, ABC):
    """The fold of one 2-D matrix: W = Wm + tau, with ``project`` taking from tau = Wt - W0 what is not to be added."""

    @abstractmethod
    def project(self, tau: Tensor, merged: Tensor, ctx: Context) -> int:
        """Change ``tau`` in place, by the merged task vector, which is not zero; both in the working dtype.

        Returns how many directions were closed to it.
        """

    def step(self, state: BaseAndMerged, incoming: Tensor, ctx: Context) -> BaseAndMerged:
        """Add what is left of ``incoming``'s task vector.

        Records step, rank_merged (what ``project`` returns), and the Frobenius norms norm_incoming (of tau) and
        norm_added (of what is left of it). Raises MergeError when a matrix holds NaN or infinity.
        """
        refuse_not_finite(base=state.base, merged=state.merged, incoming=incoming)
        dtype = spectra.working_dtype(incoming.device)
        tau = incoming.to(dtype, copy=True).sub_(state.base)
        del incoming
        norm = float(tau.norm())
        rank = 0
        if not bool(state.merged.equal(state.base)):
            rank = self.project(tau, state.merged.to(dtype, copy=True).sub_(state.base), ctx)
        ctx.record({"step": ctx.step, "rank_merged": rank, "norm_incoming": norm, "norm_added": float(tau.norm())})
        state.merged.copy_(tau.add_(state.merged))  # rounds once
        return state
