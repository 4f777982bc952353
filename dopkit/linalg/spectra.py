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

SMALL = 256  # rows below which all eigenvectors cost no more than looking whether they are needed
# Eigenvectors that are found without all the others: at most one in so many, with so many more beside them, in so many
# rounds of an iteration. Measured: beyond that, all together are found as fast.
FEW, MORE, ROUNDS = 16, 8, 12
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
    """The leading left singular directions of an (m, n) matrix M, as the projector P = U U^T on them.

    Written with the directions kept where they are few, or with those left out that have energy; with neither, P
    changes nothing. Either way N = ``reduced`` M has N^T N = M^T P M.
    """

    rank: int  # how many are kept
    kept: Tensor | None = None  # U (m, rank), orthonormal columns
    values: Tensor | None = None  # (rank,), descending: the singular values along U; there when U is
    left_out: Tensor | None = None  # (m, d), orthonormal columns

    @property
    def vectors(self) -> tuple[Tensor | None, Tensor | None]:
        """What of it is large."""
        return self.kept, self.left_out

    def energy(self, gram: Tensor) -> Tensor:
        """U S^2 U^T, (m, m), from ``gram`` = M M^T; that very tensor when nothing is left out."""
        if self.kept is not None:
            assert self.values is not None
            return (self.kept * self.values.square()) @ self.kept.mT
        if self.left_out is None:
            return gram
        out = self.left_out
        pulled = gram @ out
        pulled.addmm_(out, out.mT @ pulled, alpha=-0.5)
        return torch.addmm(gram, pulled, out.mT, alpha=-1).addmm_(out, pulled.mT, alpha=-1)

    def reduced(self, matrix: Tensor) -> Tensor:
        """U^T X (rank, n) where the directions kept are at hand, else P X (m, n), for X = ``matrix`` (m, n)."""
        if self.kept is not None:
            return self.kept.mT @ matrix
        return self._without(matrix)

    def expanded(self, matrix: Tensor) -> Tensor:
        """The transpose of ``reduced``: U Y for Y (rank, n), else P Y for Y (m, n)."""
        return self._without(matrix) if self.kept is None else self.kept @ matrix

    def projected_rows(self, matrix: Tensor) -> Tensor:
        """X P for X = ``matrix`` (n, m)."""
        if self.kept is not None:
            return (matrix @ self.kept) @ self.kept.mT
        return self._without(matrix.mT).mT

    def _without(self, matrix: Tensor) -> Tensor:
        if self.left_out is None:
            return matrix
        return torch.addmm(matrix, self.left_out, self.left_out.mT @ matrix, alpha=-1)


def leading_directions(gram: Tensor, epsilon: float, rule: RankRule = "at-least", thin: float = 0.5) -> Leading:
    """The directions that hold ``epsilon`` of the sum of singular values of M, given ``gram`` = M M^T (m, m).

    They are given themselves where they are at most the share ``thin`` of all m, and not all: how much a caller gains
    by fewer rows decides it.

    Works in the dtype of ``gram``. Eigenvalues below m * eps of the largest are rounding errors and count as zero:
    hundreds of them would otherwise hold more of the sum than an ``epsilon`` of 0.99999 leaves out. All eigenvectors
    are looked for only where they are needed, as they take most of the time.
    """
    size = gram.shape[0]
    if rule == "at-least" and _keeps_all(gram, epsilon):
        return Leading(size)
    if size < SMALL or thin >= 1:
        eigenvalues, vectors = torch.linalg.eigh(gram)
        values = _singular_values(eigenvalues)
    else:
        values, vectors = singular_values(gram), None
    rank, energetic = energy_rank(values, epsilon, rule), int(values.count_nonzero())
    few = rank < size and rank <= thin * size
    if rank == energetic and not few:
        return Leading(rank)
    if vectors is None and not few and energetic - rank <= size // FEW:
        found = _few_eigenvectors(gram, values.square(), slice(rank, energetic))
        if found is not None:
            return Leading(rank, left_out=found)
    if vectors is None:
        vectors = torch.linalg.eigh(gram).eigenvectors
    vectors = vectors.flip(1)  # descending; flip copies, so that the rest can be freed
    if few:
        return Leading(rank, vectors[:, :rank].contiguous(), values[:rank])
    return Leading(rank, left_out=vectors[:, rank:energetic].contiguous())


def singular_values(gram: Tensor) -> Tensor:
    """The singular values of M, descending, given ``gram`` = M M^T; those that are rounding errors are zero."""
    return _singular_values(torch.linalg.eigvalsh(gram))


def _keeps_all(gram: Tensor, epsilon: float) -> bool:
    """Whether it is certain that no direction may be left out: the smallest singular value is too large for that.

    The sum of the values is at most sqrt(m tr G). That the smallest exceeds the share 1 - epsilon of it, and rounding,
    is shown by a Cholesky factorisation, at a tenth of the cost of an eigenproblem.
    """
    size = gram.shape[0]
    if size == 0:
        return True
    share = 1.01 * size * max((1 - epsilon) ** 2, 2 * torch.finfo(gram.dtype).eps)
    shifted = gram.clone()
    shifted.diagonal().sub_(share * gram.diagonal().sum())
    return int(torch.linalg.cholesky_ex(shifted).info) == 0


def _few_eigenvectors(gram: Tensor, eigenvalues: Tensor, wanted: slice) -> Tensor | None:
    """Orthonormal eigenvectors (m, d) for the ``wanted`` of the ``eigenvalues``; None where all are found as fast.

    Inverse iteration of a block, shifted to the middle of the wanted ones, with some vectors more than are wanted. How
    fast it converges follows from the eigenvalues.
    """
    size, count = gram.shape[0], wanted.stop - wanted.start
    tolerance = size * torch.finfo(gram.dtype).eps * eigenvalues[0]
    middle = (eigenvalues[wanted.start] + eigenvalues[wanted.stop - 1]) / 2
    distances = (eigenvalues - middle).abs()
    reach = distances[wanted].max()
    beyond = distances.sort().values[min(size - 1, count + MORE)]
    if bool(reach * (reach / beyond) ** ROUNDS > tolerance):
        return None
    shifted = gram.clone()
    shifted.diagonal().sub_(middle + tolerance / size)  # an eigenvalue itself would be singular
    factors, pivots, _ = torch.linalg.lu_factor_ex(shifted)
    places = torch.arange(1, size + 1, dtype=gram.dtype, device=gram.device)
    block = torch.outer(places, torch.arange(1, count + MORE + 1, dtype=gram.dtype, device=gram.device)).sin_()
    for _ in range(ROUNDS):
        block = torch.linalg.qr(torch.linalg.lu_solve(factors, pivots, block)).Q
        if not bool(torch.isfinite(block).all()):
            return None
        pulled = gram @ block
        values, mixing = torch.linalg.eigh(block.mT @ pulled)
        mixing = mixing[:, (values - middle).abs().argsort()[:count]]
        found: Tensor = block @ mixing
        residual = pulled @ mixing - found * (found * (pulled @ mixing)).sum(0)
        if bool(residual.norm(dim=0).max() <= tolerance):
            return found
    return None


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
