"""Spectra of matrices: how many singular values hold a share of the energy, and which directions they are.

Everything goes through the Gram matrix of the smaller side, so that an (m, n) matrix with m <= n costs one
symmetric eigenproblem of size m. A Gram matrix squares the singular values: in float64, those under about
1e-7 of the largest cannot be told from zero and count as zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

RankRule = Literal["at-least", "below"]

BLOCK_ELEMENTS = 1 << 21  # 16 MiB of float64: large enough for a fast product, small beside any big matrix


def working_dtype(device: torch.device) -> torch.dtype:
    """The dtype to factorise in: float64, or float32 on Apple's GPU, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def column_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices that cut ``columns`` into runs of about ``BLOCK_ELEMENTS`` elements at ``rows`` rows each."""
    width = max(1, BLOCK_ELEMENTS // max(1, rows))
    for start in range(0, columns, width):
        yield slice(start, min(start + width, columns))


def energy_rank(singular_values: Tensor, epsilon: float, rule: RankRule = "at-least") -> int:
    """How many leading singular values hold the share ``epsilon`` of their plain sum (not of their squares).

    ``singular_values`` is (k,), descending. ``at-least`` is the smallest count whose sum reaches the share.
    ``below`` is the count of the reference implementation of DOP (FusionBench), which takes the zero-based
    index of the value that reaches the share for a count, and so keeps one fewer. A zero matrix has rank 0.
    """
    if singular_values.numel() == 0:
        return 0
    sums = singular_values.cumsum(0)
    if not bool(sums[-1] > 0):
        return 0
    # Dividing by the last partial sum makes the last share exactly 1, so that epsilon = 1 is always reached.
    shares = sums / sums[-1]
    reached = int(torch.searchsorted(shares, torch.full_like(shares[:1], epsilon)))
    return reached + 1 if rule == "at-least" else reached


@dataclass(frozen=True)
class Leading:
    """The leading left singular vectors of a matrix, and its singular values along them."""

    vectors: Tensor | None  # (m, k), orthonormal columns; None when no direction that has energy is left out
    values: Tensor  # (k,), descending

    @property
    def rank(self) -> int:
        return self.values.numel()

    def energy(self, gram: Tensor | None = None) -> Tensor:
        """U S^2 U^T, (m, m): the Gram matrix on the directions kept, which is ``gram`` when all are."""
        if self.vectors is None:
            if gram is None:
                raise ValueError("every direction is kept: the energy is the Gram matrix itself")
            return gram
        return (self.vectors * self.values.square()) @ self.vectors.mT

    def project(self, matrix: Tensor) -> Tensor:
        """U^T M, (k, n), for M = ``matrix`` (m, n); M itself when all directions are kept."""
        return matrix if self.vectors is None else self.vectors.mT @ matrix


def leading_directions(gram: Tensor, epsilon: float, rule: RankRule = "at-least") -> Leading:
    """The directions that hold ``epsilon`` of the sum of singular values of M, given ``gram`` = M M^T (m, m).

    Works in the dtype of ``gram``. Eigenvalues below m * eps of the largest are rounding errors and count as
    zero: hundreds of them would otherwise hold more of the sum than an ``epsilon`` of 0.99999 leaves out.
    """
    everything = epsilon >= 1 and rule == "at-least"
    if everything:  # no vectors needed, and without them the decomposition takes a third of the time
        eigenvalues, vectors = torch.linalg.eigvalsh(gram), None
    else:
        eigenvalues, vectors = torch.linalg.eigh(gram)
    if eigenvalues.numel() == 0:
        return Leading(vectors=gram[:, :0], values=eigenvalues)
    values = _singular_values(eigenvalues)
    rank = energy_rank(values, epsilon, rule)
    if vectors is None:
        return Leading(None, values[:rank])
    # Ascending order: the leading ones are the last. flip copies, so that the full set can be freed.
    kept = vectors[:, vectors.shape[1] - rank :].flip(1) if rank < values.count_nonzero() else None
    return Leading(kept, values[:rank])


@dataclass(frozen=True)
class Triplets:
    """The singular triplets of an (m, n) matrix that can be told from zero: M = left diag(values) right."""

    left: Tensor  # (m, k)
    values: Tensor  # (k,), descending
    right: Tensor  # (k, n)


def triplets(matrix: Tensor) -> Triplets:
    """The singular triplets of ``matrix`` (m, n), in its dtype, through the Gram matrix of its smaller side.

    The vectors of the larger side are M^T U / s: as orthonormal as eps / (s / max s)^2 allows.
    """
    if matrix.shape[0] > matrix.shape[1]:
        turned = triplets(matrix.mT)
        return Triplets(turned.right.mT, turned.values, turned.left.mT)
    eigenvalues, vectors = torch.linalg.eigh(matrix @ matrix.mT)
    values = _singular_values(eigenvalues)
    rank = int(values.count_nonzero())
    values = values[:rank]
    left = vectors[:, vectors.shape[1] - rank :].flip(1)
    return Triplets(left, values, (left.mT @ matrix).div_(values[:, None]))


def _singular_values(eigenvalues: Tensor) -> Tensor:
    """Descending singular values from the ascending eigenvalues of a Gram matrix; rounding errors become zero."""
    squares = eigenvalues.flip(0)
    noise = squares.numel() * torch.finfo(squares.dtype).eps * squares[:1]
    return torch.where(squares > noise, squares, 0).clamp_(min=0).sqrt_()
