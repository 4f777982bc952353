"""DOP's objective, minimised in closed form for a fixed alpha.

For one matrix W (m x n, m <= n) with base W0, merged Wm (i = 0), incoming Wt (i = 1) and task vectors
tau_i = W_i - W0 ~ U_i S_i V_i^T (the leading triplets), the published objective is

    alpha L_0 + (1 - alpha) L_1,    L_i(W) = || S_i U_i^T (W - W_i) ||^2 + || (W - W_i) V_i S_i ||^2

a convex quadratic, so its minimum solves a Sylvester equation in the distance X from the average of the two
models:

    A X + X B = R,   A = sum c_i A_i,   B = sum c_i B_i,   c = (alpha, 1 - alpha)
    A_i = U_i S_i^2 U_i^T,   B_i = V_i S_i^2 V_i^T = M_i^T M_i with M_i = U_i^T tau_i
    R = (c_1 A_1 - c_0 A_0) H + H (c_1 B_1 - c_0 B_0),   H = (tau_1 - tau_0) / 2

Where the objective is flat X is zero: the result stays at the average, where the published procedure starts.
Objective: Yang et al., NeurIPS 2025, https://openreview.net/forum?id=zD5cUX67b9; the closed form is dopkit's.
This module does not know roles, records or which side of a stored matrix is the output.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dopkit.linalg import spectra, sylvester
from dopkit.linalg.spectra import Leading
from dopkit.methods.dop_space import Space, open_space
from dopkit.methods.dop_terms import Losses, Sides, Solved


@dataclass(frozen=True)
class Task:
    """One of the two models: its index in the space, and the leading directions of its task vector."""

    index: int
    leading: Leading

    def energy(self, space: Space) -> Tensor:
        """A_i, a new (m, m) tensor."""
        if self.leading.vectors is not None:
            return self.leading.energy()
        return self.leading.energy(space.task_gram(self.index))

    def rows(self, space: Space) -> Tensor:
        """M_i = U_i^T tau_i with B_i = M_i^T M_i, a new (k, r) tensor; keeping it would raise the peak."""
        return space.task_rows(self.index, self.leading)

    def loss(self, difference: Tensor, space: Space, sides: Sides) -> float:
        """L_i / scale^4 for the coordinates (m, r) of W - W_i."""
        dual = space.dual(difference)
        loss = 0.0
        if sides.columns:
            loss += _squares(dual @ self.rows(space).mT)
        if sides.rows:
            loss += float((self.energy(space) @ difference).mul_(dual).sum())
        return max(0.0, loss)  # rounding may take an inner product, not a sum of squares, below zero


def find_task(index: int, space: Space, epsilon: float, rule: spectra.RankRule) -> Task:
    """The leading directions of tau_i, by an eigenproblem of size m."""
    return Task(index, spectra.leading_directions(space.task_gram(index), epsilon, rule))


def minimise(
    base: Tensor,
    merged: Tensor,
    incoming: Tensor,
    alpha: float,
    epsilon: float,
    rule: spectra.RankRule,
    sides: Sides,
) -> Solved:
    """Overwrite ``merged`` by the minimiser of alpha L_0 + (1 - alpha) L_1.

    All matrices are (m, n) float32 with m <= n, finite, and the two models differ. Factorises in float64
    (float32 on a device without it). Scale-free: task vectors of any size give the same relative result.
    """
    space = open_space(base, merged, incoming)
    tasks = tuple(find_task(index, space, epsilon, rule) for index in (0, 1))
    equation = assemble(space, tasks, (alpha, 1 - alpha), sides)
    distance = equation.solve(space)
    losses = [
        # The average is H away from the merged model and -H from the incoming one.
        task.loss(space.half_gap().mul_(sign).add_(distance), space, sides)
        for task, sign in zip(tasks, (1, -1), strict=True)
    ]
    space.move_to(distance, out=merged)
    in_units = space.scale**4
    before = Losses(*(loss * in_units for loss in equation.losses))
    after = Losses(*(loss * in_units for loss in losses))
    return Solved(before, after, (tasks[0].leading.rank, tasks[1].leading.rank), alpha)


@dataclass
class Equation:
    """A X + X B = R, and the losses at X = 0. B is written as a matrix, or as rows N with B = N^T N."""

    rhs: Tensor  # R (m, r)
    left: Tensor | None  # A (m, m)
    right: Tensor | None  # B (r, r)
    rows: list[Tensor]  # N in pieces of (k, r)
    losses: list[float]  # L_i / scale^4

    def solve(self, space: Space) -> Tensor:
        """X (m, r). Gives up the matrices one by one, so it can be called once."""
        right = None
        if self.right is not None:
            right = sylvester.eigen(self.right)
        elif self.rows:
            rows, self.rows = torch.cat(self.rows), []
            right = sylvester.eigen_of_rows(rows, space.gram)
            del rows
        self.right = None
        left = None if self.left is None else sylvester.eigen(self.left)
        self.left = None
        return sylvester.solve(left, right, self.rhs)


def assemble(space: Space, tasks: tuple[Task, ...], weights: tuple[float, float], sides: Sides) -> Equation:
    """The equation of both tasks, each task's matrices made once and dropped."""
    gap = space.half_gap()
    dual = space.dual(gap)
    equation = Equation(torch.zeros_like(gap), None, None, [], [0.0, 0.0])
    factored = _is_factored(space, tasks, weights)
    for task, weight, sign in zip(tasks, weights, (-1, 1), strict=True):
        if sides.columns:
            _add_columns(equation, task, weight, sign, dual, space, factored)
        if sides.rows:
            _add_rows(equation, task, weight, sign, gap, dual, space)
    return equation


def _is_factored(space: Space, tasks: tuple[Task, ...], weights: tuple[float, float]) -> bool:
    """Whether the rows N are fewer than the coordinates: then B's spectrum is cheaper found through N."""
    if space.gram is not None:
        return True
    rows, columns = space.base.shape
    count = 0
    for task, weight in zip(tasks, weights, strict=True):
        if weight > 0:
            count += rows if task.leading.vectors is None else task.leading.rank
    return count < columns


def _add_columns(
    equation: Equation, task: Task, weight: float, sign: int, dual: Tensor, space: Space, factored: bool
) -> None:
    """Add c_i B_i to B, and the signed c_i H B_i to R."""
    rows = task.rows(space)
    products = dual @ rows.mT
    equation.rhs.addmm_(products, rows, alpha=sign * weight)
    equation.losses[task.index] += _squares(products)
    del products
    if factored:
        # A task of weight zero must not shape the basis: alpha = 0 and alpha = 1 then are no special cases.
        if weight > 0:
            equation.rows.append(rows.mul_(weight**0.5))
    elif equation.right is None:
        equation.right = (rows.mT @ rows).mul_(weight)
    else:
        equation.right.addmm_(rows.mT, rows, alpha=weight)


def _add_rows(
    equation: Equation, task: Task, weight: float, sign: int, gap: Tensor, dual: Tensor, space: Space
) -> None:
    """Add c_i A_i to A, and the signed c_i A_i H to R."""
    energy = task.energy(space)
    pulled = energy @ gap
    equation.rhs.add_(pulled, alpha=sign * weight)
    equation.losses[task.index] += float(pulled.mul_(dual).sum())
    energy.mul_(weight)
    equation.left = energy if equation.left is None else equation.left.add_(energy)


def _squares(matrix: Tensor) -> float:
    """The sum of squares of a matrix that is needed no more."""
    return float(matrix.square_().sum())
