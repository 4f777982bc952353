"""Sylvester equations A X + X B = R with symmetric positive semidefinite A and B.

Solved in the eigenbases of A and B (Bartels and Stewart's method for the symmetric case): there the unknowns
come apart, x_jk = r_jk / (a_j + b_k). The equation may be singular; directions in which it says nothing are
left at zero.

Rows may be written in any coordinates, not only orthonormal ones: with a basis T (r, n) of row vectors and
its Gram matrix G = T T^T, a matrix X = Y T stands as its coordinates Y (m, r), and a right-hand matrix that
would be n x n never exists. All tensors of one call share a dtype; float64 is meant, float32 works with a
larger tolerance.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dopkit.linalg.parking import KEPT, Park
from dopkit.linalg.products import gram

# Below this share of the largest a_j + b_k a direction is flat. It must exceed the rounding errors of R,
# which the division blows up, by some orders of magnitude.
FLAT = {torch.float64: 1e-11, torch.float32: 1e-5}


@dataclass(frozen=True)
class Eigen:
    """Eigenpairs of a symmetric positive semidefinite matrix, which is zero on what they leave out."""

    values: Tensor  # (r,), not negative
    vectors: Tensor  # (d, r) orthonormal, in the coordinates used
    dual: Tensor  # (d, r), G @ vectors: coordinates x have the components x @ dual along the vectors

    @property
    def complete(self) -> bool:
        return self.vectors.shape[0] == self.vectors.shape[1]


def eigen(matrix: Tensor) -> Eigen:
    """All eigenpairs of a symmetric positive semidefinite matrix (d, d)."""
    values, vectors = torch.linalg.eigh(matrix)
    return Eigen(values.clamp_(min=0), vectors, vectors)


def eigen_of_rows(rows: Tensor, park: Park = KEPT) -> Eigen:
    """The eigenpairs of N^T N that are not zero, for ``rows`` = N (k, r); costs an eigenproblem of size k.

    The vectors are N^T Z b^(-1/2) for N N^T = Z diag(b) Z^T, so a direction is only as orthonormal as
    eps / (b / max b) allows: those below the flat tolerance are left out.
    """
    product = gram(rows)
    park.away(rows)
    values, mixing = curved(product)
    del product
    park.here(rows)
    vectors = rows.mT @ mixing.div_(values.sqrt())
    return Eigen(values, vectors, vectors)


def curved(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenvalues (k,) and eigenvectors (d, k) of a symmetric matrix (d, d) that exceed the flat tolerance."""
    values, vectors = torch.linalg.eigh(matrix)
    if values.numel():
        # Ascending order: what is left out comes first.
        flat = int((values <= FLAT[values.dtype] * values[-1].clamp(min=0)).sum())
        values, vectors = values[flat:], vectors[:, flat:]
    return values, vectors


def solve(
    left: Eigen | None, right: Eigen | None, rhs: Tensor, tolerance: float | None = None, park: Park = KEPT
) -> Tensor:
    """X (m, r) of A X + X B = R with A = ``left`` (all its eigenpairs), B = ``right`` and R = ``rhs`` (m, r).

    None stands for a zero matrix (a one-sided equation). Directions with a_j + b_k <= tolerance * max(a + b)
    are zero in X: of all least-squares solutions that is the shortest. ``tolerance`` defaults to ``FLAT`` of
    the dtype. Of what is given, all but ``left`` may be away, and is away afterwards.
    """
    if left is not None and not left.complete:
        raise ValueError("the left matrix needs all its eigenpairs")
    largest = sum(float(side.values.max()) for side in (left, right) if side is not None and side.values.numel())
    cutoff = (FLAT[rhs.dtype] if tolerance is None else tolerance) * largest
    columns = rhs.new_zeros(1) if left is None else left.values
    on_the_left, on_the_right = _vectors(left), _vectors(right)
    park.away(*on_the_right)
    park.here(rhs)
    turned = rhs.clone() if left is None else left.vectors.mT @ rhs
    park.away(rhs, *on_the_left)
    if right is None:
        solution = _divide(turned, columns[:, None], cutoff)
    else:
        park.here(*on_the_right)
        inside = turned @ right.dual  # (m, rank of B)
        outside = None
        if left is not None and not right.complete:  # where B is zero, A alone decides
            outside = torch.addmm(turned, inside, right.vectors.mT, alpha=-1)
            outside = _divide(outside, columns[:, None], cutoff)
        del turned  # each of these is as large as the solution
        park.away(*on_the_right)
        inside = _divide(inside, columns[:, None] + right.values, cutoff)
        park.here(*on_the_right)
        solution = inside @ right.vectors.mT
        del inside
        if outside is not None:
            solution += outside
        park.away(*on_the_right)
    park.here(*on_the_left)
    return solution if left is None else left.vectors @ solution


def _vectors(side: Eigen | None) -> tuple[Tensor, ...]:
    return () if side is None else (side.vectors, side.dual)


def _divide(numerator: Tensor, denominator: Tensor, cutoff: float) -> Tensor:
    """Divide ``numerator`` in place; zero where the denominator does not exceed the cutoff."""
    return numerator.div_(denominator.where(denominator > cutoff, torch.inf))
