"""MagMax: of all task vectors, the entry of largest magnitude wins.

Paper: Marczak et al., MagMax: Leveraging Model Merging for Seamless Continual Learning, ECCV 2024,
https://arxiv.org/abs/2407.06322. Element by element; one rounding per operation (see ``average``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dopkit.methods.continual_parameters import MagMaxParameters
from dopkit.methods.finite import refuse_not_finite
from dopkit.methods.fold import BaseAndMerged, Context, TaskVectorFold


class MagMax(TaskVectorFold):
    """W = W0 + lambda * (the task vectors' entry of largest magnitude); of equal magnitudes the later one. Any shape.

    The state is the merged tensor itself, so the magnitudes compared are those of the contributions that W holds or
    would hold, |W - W0|: a split run compares the same numbers as a whole one.
    """

    def start(self, base: Tensor | None, first: Tensor, ctx: Context) -> BaseAndMerged:
        state = super().start(base, first, ctx)
        state.merged = _contribution(first, state.base, ctx)
        return state

    def step(self, state: BaseAndMerged, incoming: Tensor, ctx: Context) -> BaseAndMerged:
        """Raises MergeError when ``incoming`` holds NaN or infinity, which a comparison might hide."""
        refuse_not_finite(incoming=incoming)
        candidate = _contribution(incoming, state.base, ctx)
        wins = (candidate - state.base).abs_() >= (state.merged - state.base).abs_()
        torch.where(wins, candidate, state.merged, out=state.merged)
        return state


def _contribution(model: Tensor, base: Tensor, ctx: Context) -> Tensor:
    """W0 + lambda * (model - W0), in the model's memory."""
    assert isinstance(ctx.parameters, MagMaxParameters)
    factor = ctx.parameters.lambda_
    return model if factor == 1 else model.sub_(base).mul_(factor).add_(base)
