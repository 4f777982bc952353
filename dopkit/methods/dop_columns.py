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
        self._taus, self._park = taus, taus.park
        self._energies: list[Tensor] = []  # A_i (m, m), away
        self._leading: list[Leading] = []  # away
        for task in (0, 1):
            product = gram(self._tau(task))
            leading = spectra.leading_directions(product, epsilon, rule)
            self._leading.append(leading)
            self._energies.append(leading.energy(product))
            del product
            self._park.away(self._energies[task], *leading.vectors)

    @property
    def ranks(self) -> tuple[int, int]:
        return self._leading[0].rank, self._leading[1].rank

    def equation(self, weights: Weights, sides: Sides) -> Equation:
        gap = self._half_gap()
        rhs, losses = torch.zeros_like(gap), [0.0, 0.0]
        left = self._add_rows(rhs, losses, gap, weights) if sides.rows else None
        self._energies.clear()
        self._park.away(left)
        right = None
        if sides.columns:
            factored = self._is_factored(weights)
            found = (self._add_factored if factored else self._add_columns)(rhs, losses, gap, weights)
            del gap  # what follows needs more memory than anything before
            right = sylvester.eigen_of_rows(found, self._park) if factored else sylvester.eigen(found)
            self._park.away(right.vectors, right.dual)
        return Equation(rhs, left, right, (losses[0], losses[1]))

    def outcome(self, distance: Tensor, rhs: Tensor, task: int, sides: Sides) -> tuple[float, float]:
        self._park.here(distance, rhs)
        gain = float((distance * rhs).sum())
        self._park.away(distance, rhs)
        leading, loss = self._leading[task], 0.0
        difference = _Single.of(self._difference(distance, task))
        rows = _Single.of(self._rows(task))
        if sides.columns:
            loss += difference.squares_with(rows.turned())
        if sides.rows and leading.kept is not None:
            assert leading.values is not None
            self._park.here(leading.kept)
            rows = _Single.of((leading.kept * leading.values).mT)
            loss += rows.squares_with(difference)
        elif sides.rows:
            loss += rows.turned().squares_with(difference)
        return gain, loss

    def columns(self, distance: Tensor, block: slice) -> Tensor:
        return distance[:, block]

    def _tau(self, task: int) -> Tensor:
        made_of = self._taus.base, self._taus.models[task]
        self._park.here(*made_of)
        tau = self._taus.one(task)
        self._taus.away()
        return tau

    def _half_gap(self) -> Tensor:
        self._park.here(*self._taus.models)
        gap = self._taus.half_gap()
        self._taus.away()
        return gap

    def _difference(self, distance: Tensor, task: int) -> Tensor:
        """From a model of this task to the solution."""
        gap = self._half_gap().mul_(-SIGNS[task])
        self._park.here(distance)
        gap.add_(distance)
        self._park.away(distance)
        return gap

    def _rows(self, task: int) -> Tensor:
        """N with B_i = N^T N, a new (k, n) tensor; keeping it would raise the peak."""
        leading, tau = self._leading[task], self._tau(task)
        self._park.here(*leading.vectors)
        rows = leading.reduced(tau)
        self._park.away(*leading.vectors)
        return rows

    def _add_rows(self, rhs: Tensor, losses: list[float], gap: Tensor, weights: Weights) -> Tensor:
        """Add the signed c_i A_i H to R, and L_i's part at the average to ``losses``; return A."""
        left = torch.zeros_like(self._energies[0])
        for task, (weight, energy) in enumerate(zip(weights, self._energies, strict=True)):
            self._park.away(rhs, left)
            self._park.here(energy)
            pulled = energy @ gap
            self._park.away(energy)
            self._park.here(rhs)
            rhs.add_(pulled, alpha=SIGNS[task] * weight)
            losses[task] += float(pulled.mul_(gap).sum())
            del pulled
            self._park.here(left, energy)
            left.add_(energy, alpha=weight)
            self._park.away(energy)
        return left

    def _is_factored(self, weights: Weights) -> bool:
        """Whether the rows N of all tasks are fewer than the columns: then B's spectrum is cheaper found through N."""
        rows, columns = self._taus.base.shape
        counts = [one.rank if one.kept is not None else rows for one in self._leading]
        return sum(count for count, weight in zip(counts, weights, strict=True) if weight > 0) < columns

    def _add_columns(self, rhs: Tensor, losses: list[float], gap: Tensor, weights: Weights) -> Tensor:
        """The same with H B_i; return B. R is away then."""
        right = gap.new_zeros(gap.shape[1], gap.shape[1])
        for task, weight in enumerate(weights):
            self._park.away(gap, rhs, right)
            square = gram(self._rows(task).mT)
            self._park.here(gap)
            pulled = gap @ square
            self._park.away(square)
            self._park.here(rhs)
            rhs.add_(pulled, alpha=SIGNS[task] * weight)
            losses[task] += float(pulled.mul_(gap).sum())
            del pulled
            self._park.away(gap, rhs)
            self._park.here(right, square)
            right.add_(square, alpha=weight)
            del square
        return right

    def _add_factored(self, rhs: Tensor, losses: list[float], gap: Tensor, weights: Weights) -> Tensor:
        """The same with H B_i; return N with B = N^T N.

        A task of weight zero must not shape the basis: alpha = 0 and alpha = 1 then are no special cases.
        """
        pieces = []
        for task, weight in enumerate(weights):
            self._park.away(gap, rhs)
            rows = self._rows(task)
            self._park.here(gap)
            pulled = gap @ rows.mT
            self._park.away(gap)
            self._park.here(rhs)
            rhs.addmm_(pulled, rows, alpha=SIGNS[task] * weight)
            losses[task] += float(pulled.square_().sum())
            if weight > 0:
                pieces.append(rows.mul_(weight**0.5))
            self._park.away(rows)
        self._park.away(rhs)
        self._park.here(*pieces)
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
