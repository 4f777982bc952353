"""Matrices of low rank as products of two factors, and the small matrices that stand for several of them together.

With B = Q_b R_b and A^T = Q_a R_a, Q of orthonormal columns, the product B A is Q_b (R_b R_a^T) Q_a^T: a matrix as
large as the ranks holds all there is to know of it. Nothing as large as a product is ever made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Factors:
    """The matrix B A (m, n)."""

    b: Tensor  # (m, r)
    a: Tensor  # (r, n)

    @property
    def rank(self) -> int:
        """The most that its rank can be: how long the factors are."""
        return self.a.shape[0]

    def scaled(self, number: float) -> Factors:
        """The same matrix times a number; with 1 the very factors."""
        return self if number == 1 else Factors(self.b * number, self.a)

    def squares(self) -> float:
        """The sum of squares of all its entries, found in float64."""
        b, a = self.b.to(torch.float64), self.a.to(torch.float64)
        return float(((b.mT @ b) * (a @ a.mT)).sum())


@dataclass(frozen=True)
class Span:
    """The spaces that the columns and the rows of several products lie in, and the products as seen there, float64."""

    left: Tensor  # (m, p), orthonormal columns
    right: Tensor  # (n, q), orthonormal columns
    matrices: tuple[Tensor, ...]  # (p, q): the product k is left @ matrices[k] @ right^T


def span(products: Sequence[Factors]) -> Span:
    """The joint span of products (m, n): p and q are the ranks added up, at most m and n. At least one product."""
    ranks = [product.rank for product in products]
    left, upper = torch.linalg.qr(torch.cat([product.b for product in products], dim=1).to(torch.float64))
    right, lower = torch.linalg.qr(torch.cat([product.a for product in products]).to(torch.float64).mT)
    pairs = zip(upper.split(ranks, dim=1), lower.split(ranks, dim=1), strict=True)
    return Span(left, right, tuple(one @ other.mT for one, other in pairs))


@dataclass(frozen=True)
class Cut:
    """The energy of a matrix, its squared Frobenius norm, and how much of it was cut off."""

    energy: float
    lost: float


def split(space: Span, matrix: Tensor, rank: int | None = None) -> tuple[Factors, Cut]:
    """left @ ``matrix`` @ right^T as float32 factors, each with the roots of the singular values.

    Of the singular values the ``rank`` largest are kept, which is the nearest product of that rank; by default all.
    """
    u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    energies = values.square()
    cut = Cut(float(energies.sum()), float(energies[rank:].sum()) if rank is not None else 0.0)
    root = values[:rank].sqrt()
    b = (space.left @ u[:, :rank]) * root
    a = (space.right @ (v[:rank].mT * root)).mT
    return Factors(b.to(torch.float32), a.to(torch.float32).contiguous()), cut


def shortened(product: Factors, rank: int) -> tuple[Factors, Cut]:
    """The nearest product of at most ``rank``, in float32."""
    space = span([product])
    return split(space, space.matrices[0], rank)
