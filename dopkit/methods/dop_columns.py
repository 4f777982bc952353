"""DOP's equation in the columns themselves: for matrices (m, n) that are not very wide, m <= n <= 2m.

With everything of a task vector kept, A_i and B_i are its two Gram matrices: no singular vectors are needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dopkit.linalg import spectra, sylvester
from dopkit.linalg.products import gram
from dopkit.linalg.spectra import Leading
from dopkit.methods.dop_space import SIGNS, Equation, TaskVectors, Weights
from dopkit.methods.dop_terms import Sides


class Columns:
    """A ``Space`` whose coordinates are the n columns."""

    def __init__(self, taus: TaskVectors, epsilon: float, rule: spectra.RankRule) -> None:
        self._taus = taus
        self._energies: list[Tensor] = []  # A_i (m, m)
        self._leading: list[Leading] = []
        for task in (0, 1):
            product = gram(taus.one(task))
            leading = spectra.leading_directions(product, epsilon, rule)
            self._leading.append(leading)
            self._energies.append(leading.energy(product))

    @property
    def ranks(self) -> tuple[int, int]:
        return self._leading[0].rank, self._leading[1].rank

    def equation(self, weights: Weights, sides: Sides) -> Equation:
        gap = self._taus.half_gap()
        rhs, losses = torch.zeros_like(gap), [0.0, 0.0]
        left = self._add_rows(rhs, losses, gap, weights) if sides.rows else None
        self._energies.clear()
        right = None
        if sides.columns:
            factored = self._is_factored(weights)
            found = (self._add_factored if factored else self._add_columns)(rhs, losses, gap, weights)
            del gap  # what follows needs more memory than anything before
            right = sylvester.eigen_of_rows(found) if factored else sylvester.eigen(found)
        return Equation(rhs, left, right, (losses[0], losses[1]))

    def outcome(self, distance: Tensor, rhs: Tensor, task: int, sides: Sides) -> tuple[float, float]:
        gain = float((distance * rhs).sum())
        leading, loss = self._leading[task], 0.0
        difference = _Single.of(self._taus.half_gap().mul_(-SIGNS[task]).add_(distance))
        rows = _Single.of(self._rows(task))
        if sides.columns:
            loss += difference.squares_with(rows.turned())
        if sides.rows and leading.kept is not None:
            assert leading.values is not None
            rows = _Single.of((leading.kept * leading.values).mT)
            loss += rows.squares_with(difference)
        elif sides.rows:
            loss += rows.turned().squares_with(difference)
        return gain, loss

    def columns(self, distance: Tensor, block: slice) -> Tensor:
        return distance[:, block]

    def _rows(self, task: int) -> Tensor:
        """N with B_i = N^T N, a new (k, n) tensor; keeping it would raise the peak."""
        return self._leading[task].reduced(self._taus.one(task))

    def _add_rows(self, rhs: Tensor, losses: list[float], gap: Tensor, weights: Weights) -> Tensor:
        """Add the signed c_i A_i H to R, and L_i's part at the average to ``losses``; return A."""
        left = torch.zeros_like(self._energies[0])
        for task, (weight, energy) in enumerate(zip(weights, self._energies, strict=True)):
            pulled = energy @ gap
            rhs.add_(pulled, alpha=SIGNS[task] * weight)
            losses[task] += float(pulled.mul_(gap).sum())
            left.add_(energy, alpha=weight)
        return left

    def _is_factored(self, weights: Weights) -> bool:
        """Whether the rows N of all tasks are fewer than the columns: then B's spectrum is cheaper found through N."""
        rows, columns = self._taus.base.shape
        counts = [one.rank if one.kept is not None else rows for one in self._leading]
        return sum(count for count, weight in zip(counts, weights, strict=True) if weight > 0) < columns

    def _add_columns(self, rhs: Tensor, losses: list[float], gap: Tensor, weights: Weights) -> Tensor:
        """The same with H B_i; return B."""
        right = gap.new_zeros(gap.shape[1], gap.shape[1])
        for task, weight in enumerate(weights):
            square = gram(self._rows(task).mT)
            pulled = gap @ square
            rhs.add_(pulled, alpha=SIGNS[task] * weight)
            losses[task] += float(pulled.mul_(gap).sum())
            right.add_(square, alpha=weight)
        return right

    def _add_factored(self, rhs: Tensor, losses: list[float], gap: Tensor, weights: Weights) -> Tensor:
        """The same with H B_i; return N with B = N^T N.

        A task of weight zero must not shape the basis: alpha = 0 and alpha = 1 then are no special cases.
        """
        pieces = []
        for task, weight in enumerate(weights):
            rows = self._rows(task)
            pulled = gap @ rows.mT
            rhs.addmm_(pulled, rows, alpha=SIGNS[task] * weight)
            losses[task] += float(pulled.square_().sum())
            if weight > 0:
                pieces.append(rows.mul_(weight**0.5))
        return torch.cat(pieces)


@dataclass(frozen=True)
class _Single:
    """A matrix in float32, for a product of which only the sum of squares is wanted: cancellation takes nothing."""

    matrix: Tensor  # entries up to 1
    unit: float

    @classmethod
    def of(cls, matrix: Tensor) -> _Single:
        unit = float(matrix.abs().max()) if matrix.numel() else 1.0
        return cls(matrix.to(torch.float32) if unit == 0 else matrix.div(unit).to(torch.float32), unit)

    def turned(self) -> _Single:
        return _Single(self.matrix.mT, self.unit)

    def squares_with(self, other: _Single) -> float:
        """|| M N ||^2 for this matrix M and the other one."""
        product = self.matrix @ other.matrix
        return float(torch.linalg.vector_norm(product, dtype=torch.float64)) ** 2 * (self.unit * other.unit) ** 2
