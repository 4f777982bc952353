"""Sums over tasks whose size does not grow with their number, and the matrix that fits all tasks at once.

For one matrix X = W - W0 (m x n) and task vectors tau_t, each with a weight c_t, the objective

    J(X) = sum c_t ( <X - tau_t, A_t (X - tau_t)> + <X - tau_t, (X - tau_t) B_t> )

with A_t = U S^2 U^T and B_t = V S^2 V^T of the leading triplets of tau_t is a convex quadratic whose minimum solves

    A X + X B = C,   A = sum c_t A_t,   B = sum c_t B_t,   C = sum c_t (A_t tau_t + tau_t B_t)

Where it is flat, X stays at the mean of the task vectors. DOP over all tasks keeps both sides, WUDI the input side.
This module does not know parameters, roles, or which side of a stored matrix is the input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from dopkit.linalg import spectra, sylvester
from dopkit.linalg.products import gram
from dopkit.linalg.spectra import Leading
from dopkit.methods.dop_terms import Sides

# A residual below this share of the terms it is the difference of is rounding, which the solution would only blow up:
# with one model, or copies of one, the mean is the minimum, to the last bit.
NOISE = 1e-13
# Curvature below this share of the largest is flat. The sums round differently in another order of the models, by some
# 1e-16 of the largest, and the solution divides by the curvature: this keeps the order from showing above 1e-6.
FLAT = 1e-10


class Fitted(NamedTuple):
    """The minimum of J, and J at the mean of the task vectors and there."""

    point: Tensor  # X (m, n) float64
    before: float
    after: float


@dataclass
class TaskSums:
    """What is kept of the tasks so far, float64 (a rule that uses it says so); None for a side that does not count."""

    left: Tensor | None  # A (m, m)
    right: Tensor | None  # B (n, n)
    rhs: Tensor  # C (m, n)
    total: Tensor  # sum of the task vectors (m, n), without weights
    constant: Tensor  # (1,) sum of c_t <tau_t, A_t tau_t + tau_t B_t>, which is J(0)

    @classmethod
    def empty(cls, like: Tensor, sides: Sides) -> TaskSums:
        """Of no tasks, for matrices of the shape and on the device of ``like``."""
        (rows, columns), new = like.shape, like.new_zeros

        def zeros(*shape: int) -> Tensor:
            return new(shape, dtype=torch.float64)

        left = zeros(rows, rows) if sides.rows else None
        right = zeros(columns, columns) if sides.columns else None
        return cls(left, right, zeros(rows, columns), zeros(rows, columns), zeros(1))

    def pack(self) -> dict[str, Tensor]:
        """Its tensors by name, as ``state_of_sums`` declares them."""
        return {name: tensor for name, tensor in vars(self).items() if tensor is not None}

    @classmethod
    def unpack(cls, packed: Mapping[str, Tensor]) -> TaskSums:
        sides = packed.get("left"), packed.get("right")
        return cls(*sides, packed["rhs"], packed["total"], packed["constant"])

    def _turned(self) -> TaskSums:
        """The same memory, seen as the sums of the transposed matrices."""
        return replace(self, left=self.right, right=self.left, rhs=self.rhs.mT, total=self.total.mT)

    def add(self, tau: Tensor, weight: float, epsilon: float, rule: spectra.RankRule) -> int:
        """Add a task of float64 task vector ``tau`` (m, n); return how many of its triplets are kept."""
        if tau.shape[0] > tau.shape[1]:  # the spectrum is found on the smaller side
            return self._turned().add(tau.mT, weight, epsilon, rule)
        self.total += tau
        product = gram(tau)
        leading = spectra.leading_directions(product, epsilon, rule)
        self._add_leading(tau, product, leading, weight)
        return leading.rank

    def add_whole(self, tau: Tensor, weight: float) -> None:
        """Add a task with all its triplets, without looking for them."""
        if tau.shape[0] > tau.shape[1]:
            return self._turned().add_whole(tau.mT, weight)
        self.total += tau
        self._add_leading(tau, gram(tau), Leading(tau.shape[0]), weight)

    def _add_leading(self, tau: Tensor, product: Tensor, leading: Leading, weight: float) -> None:
        """With the rows N that are kept: B_t = N^T N, and A_t tau = tau B_t."""
        sides = (self.left is not None) + (self.right is not None)
        energy = leading.energy(product)
        self.rhs.addmm_(energy, tau, alpha=sides * weight)
        self.constant += sides * weight * energy.square().sum()  # the sum of s^4
        if self.left is not None:
            self.left.add_(energy, alpha=weight)
        del energy, product
        if self.right is not None:
            rows = leading.reduced(tau)
            self.right.addmm_(rows.mT, rows, alpha=weight)

    def fit(self, count: int, ridge: float = 0.0) -> Fitted:
        """The minimum of J over the ``count`` tasks added. Leaves the sums as they are.

        With a ``ridge``, that of J(X) + r || X - M ||^2, where M is the mean of the task vectors and r this share of
        the mean curvature tr A / m + tr B / n. One-sided sums need one: where a direction has little energy in every
        task, their minimum is a difference of large numbers.
        """
        mean = self.total / count
        pull = self._apply(mean)
        size = sum(float(side.norm()) for side in (self.left, self.right) if side is not None) * float(mean.norm())
        residual = torch.sub(self.rhs, pull, out=pull)
        before = float(self.constant) - _inner(mean, self.rhs) - _inner(mean, residual)
        if float(residual.norm()) <= NOISE * size:
            return Fitted(mean, max(0.0, before), max(0.0, before))
        left = None if self.left is None else sylvester.eigen(self.left)
        right = None if self.right is None else sylvester.eigen(self.right)
        pull_back = ridge * sum(float(side.values.mean()) for side in (left, right) if side is not None)
        for side in (left, right):
            if side is not None:
                side.values.add_(pull_back)
                break
        distance = sylvester.solve(left, right, residual, FLAT)
        del left, right, side
        # J(M + D) = J(M) - 2 <D, R> + <D, A D + D B>, and A D + D B = R - r D where it was solved.
        after = before - _inner(distance, residual) - pull_back * _inner(distance, distance)
        return Fitted(distance.add_(mean), max(0.0, before), max(0.0, after))

    def _apply(self, point: Tensor) -> Tensor:
        """A X + X B, a new tensor."""
        result = torch.zeros_like(point) if self.left is None else self.left @ point
        return result if self.right is None else result.addmm_(point, self.right)


def _inner(one: Tensor, other: Tensor) -> float:
    return float(torch.dot(one.reshape(-1), other.reshape(-1)))
