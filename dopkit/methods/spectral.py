"""Merges that rebuild the spectrum of a matrix: singular vectors of the tasks, with singular values of our choosing.

TSV: Gargiulo et al., Task Singular Vectors, CVPR 2025, https://arxiv.org/abs/2412.00081
Iso-C, Iso-CTS: Marczak et al., No Task Left Behind, ICML 2025, https://arxiv.org/abs/2502.04959

One 2-D matrix in either orientation, factorised in float64. Only triplets that can be told from zero count, so a task
vector of low rank does not bring directions that rounding chose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dopkit.linalg import spectra
from dopkit.linalg.spectra import Triplets
from dopkit.methods.finite import refuse_not_finite
from dopkit.methods.fold import BaseAndTotal, Context
from dopkit.methods.spectral_parameters import IsoCParameters, IsoCtsParameters, TsvParameters

DEPENDENT = 1e-6  # what is below this beside vectors of length 1 is rounding: they depend on each other


class IsoC:
    """D = U V^T times the mean singular value of the sum of the task vectors U S V^T; W = W0 + lambda D."""

    def start(self, base: Tensor | None, first: Tensor, ctx: Context) -> BaseAndTotal:
        """Raises ValueError without a base."""
        if base is None:
            raise ValueError("a fold of task vectors needs the base model's tensor")
        return self.step(BaseAndTotal(base, torch.zeros_like(base)), first, ctx)

    def step(self, state: BaseAndTotal, incoming: Tensor, ctx: Context) -> BaseAndTotal:
        """Raises MergeError when a matrix holds NaN or infinity."""
        refuse_not_finite(base=state.base, incoming=incoming)
        state.total += incoming.sub_(state.base)
        return state

    def finish(self, state: BaseAndTotal, ctx: Context) -> Tensor:
        """W, a new tensor. Records step and rank, of the sum."""
        assert isinstance(ctx.parameters, IsoCParameters)
        found = _triplets(state.total)
        ctx.record({"step": ctx.step, "rank": found.values.numel()})
        return _flattened(state.base, found.left, found.values, found.right, ctx.parameters.lambda_)

    def pack(self, state: BaseAndTotal) -> dict[str, Tensor]:
        return {"total": state.total}

    def unpack(self, base: Tensor | None, packed: Mapping[str, Tensor], ctx: Context) -> BaseAndTotal:
        if base is None:
            raise ValueError("a fold of task vectors needs the base model's tensor")
        return BaseAndTotal(base, packed["total"])


class Tsv:
    """W = W0 + lambda U S V^T: 1/T of the triplets of each of T task vectors, made orthogonal together."""

    def merge(self, base: Tensor | None, tensors: Sequence[Tensor], contexts: Sequence[Context]) -> Tensor:
        """Raises MergeError when a matrix holds NaN or infinity."""
        parameters = contexts[-1].parameters
        assert isinstance(parameters, TsvParameters) and base is not None
        refuse_not_finite(base=base)
        each = max(1, min(base.shape) // len(tensors)) if min(base.shape) else 0
        kept = [_leading(_triplets(_delta(base, tensor)), each) for tensor in tensors]
        together = _joined(kept)
        merged = (_orthogonal(together.left) * together.values) @ _orthogonal(together.right.mT).mT
        return merged.mul_(parameters.lambda_).add_(base).to(base.dtype)


class IsoCts:
    """Iso-C, where a share of the directions is each task's own: of what the common ones leave of its task vector.

    D = U V^T times the mean of the singular values of the k common triplets and of the s of each of T tasks, U and
    V their vectors made orthogonal together, r the smaller side, s = (r - floor(common_share r)) / T, rounded, and
    k = r - s T; W = W0 + lambda D.
    """

    def merge(self, base: Tensor | None, tensors: Sequence[Tensor], contexts: Sequence[Context]) -> Tensor:
        """Raises MergeError when a matrix holds NaN or infinity."""
        parameters = contexts[-1].parameters
        assert isinstance(parameters, IsoCtsParameters) and base is not None
        refuse_not_finite(base=base)
        total = _delta(base, tensors[0])
        for tensor in tensors[1:]:
            total += _delta(base, tensor)
        number = min(base.shape)
        own = round((number - int(parameters.common_share * number)) / len(tensors))
        common = _leading(_triplets(total), number - own * len(tensors))
        del total
        kept = [common]
        for tensor in tensors if own else []:
            delta = _delta(base, tensor)
            rest = delta - common.left @ (common.left.mT @ delta)
            # What rounding leaves of a task vector that the common directions hold is none of its own.
            small = float(rest.norm()) <= DEPENDENT * float(delta.norm())
            kept.append(_leading(_triplets(rest), 0 if small else own))
        together = _joined(kept)
        return _flattened(
            base, _orthogonal(together.left), together.values, _orthogonal(together.right.mT).mT, parameters.lambda_
        )


def _delta(base: Tensor, model: Tensor) -> Tensor:
    refuse_not_finite(incoming=model)
    return model.to(spectra.working_dtype(model.device), copy=True).sub_(base)


def _triplets(delta: Tensor) -> Triplets:
    return spectra.triplets(delta.to(spectra.working_dtype(delta.device)))


def _leading(found: Triplets, count: int) -> Triplets:
    # Copies, so that the rest is freed.
    return Triplets(found.left[:, :count].clone(), found.values[:count], found.right[:count].clone())


def _joined(found: Sequence[Triplets]) -> Triplets:
    """All triplets side by side, in the order of the tasks."""
    return Triplets(
        torch.cat([one.left for one in found], 1),
        torch.cat([one.values for one in found]),
        torch.cat([one.right for one in found], 0),
    )


def _orthogonal(vectors: Tensor) -> Tensor:
    """The nearest matrix (m, k) with orthonormal columns: the orthogonal factor of its polar decomposition.

    Of unit vectors, such as these. Where they depend on each other (copies of one model), that factor is not unique;
    then the one that has no other directions than they.
    """
    if not vectors.numel():
        return vectors
    left, values, right = torch.linalg.svd(vectors, full_matrices=False)
    rank = int((values > DEPENDENT).sum())
    orthogonal: Tensor = left[:, :rank] @ right[:rank]
    return orthogonal


def _flattened(base: Tensor, left: Tensor, values: Tensor, right: Tensor, factor: float) -> Tensor:
    """The base plus ``left`` times ``right`` (m, k; k, n), at ``factor`` times the mean of ``values`` (k,)."""
    if not values.numel():
        return base.clone()
    return (left @ right).mul_(factor * float(values.mean())).add_(base).to(base.dtype)
