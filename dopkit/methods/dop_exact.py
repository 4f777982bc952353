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
This module does not know roles, records, or in which coordinates the equation is written.
"""

from __future__ import annotations

from torch import Tensor

from dopkit.linalg import spectra, sylvester
from dopkit.linalg.parking import KEPT, Park
from dopkit.methods.dop_columns import Columns
from dopkit.methods.dop_rows import JointRows
from dopkit.methods.dop_space import Space, TaskVectors, Weights
from dopkit.methods.dop_terms import Losses, Sides, Solved


def minimise(
    base: Tensor,
    merged: Tensor,
    incoming: Tensor,
    alpha: float,
    epsilon: float,
    rule: spectra.RankRule,
    sides: Sides,
    park: Park = KEPT,
) -> Solved:
    """Overwrite ``merged`` by the minimiser of alpha L_0 + (1 - alpha) L_1.

    All matrices are (m, n) float32 with m <= n, finite, and the two models differ. Factorises in float64
    (float32 on a device without it). Scale-free: task vectors of any size give the same relative result.
    What is not needed at the moment is told to ``park``; at the end all three matrices are here.
    """
    taus = TaskVectors.of(base, merged, incoming, park)
    rows, columns = base.shape
    space: Space = Columns(taus, epsilon, rule) if columns <= 2 * rows else JointRows(taus, epsilon, rule)
    weights = (alpha, 1 - alpha)
    equation = space.equation(weights, sides)
    park.away(equation.rhs)
    park.here(equation.left)
    left = None if equation.left is None else sylvester.eigen(equation.left)
    equation.left = None
    distance = sylvester.solve(left, equation.right, equation.rhs, park=park)
    del left
    equation.right = None
    before = Losses(*equation.losses)
    after = _losses(space, distance, equation.rhs, before.weighted(alpha), weights, sides)
    del equation
    park.here(base, merged, incoming, distance)
    taus.move_to(space, distance, out=merged)
    park.forget()
    return Solved(_in_units(before, taus), _in_units(after, taus), space.ranks, alpha)


def _losses(space: Space, distance: Tensor, rhs: Tensor, objective: float, weights: Weights, sides: Sides) -> Losses:
    """L_0 and L_1 at the minimum X, where the objective is ``objective`` less <X, R>: one is found, one follows."""
    lighter = 0 if weights[0] < weights[1] else 1
    gain, found = space.outcome(distance, rhs, lighter, sides)
    # Rounding may take a difference below zero.
    other = max(0.0, (objective - gain - weights[lighter] * found) / weights[1 - lighter])
    return Losses(found, other) if lighter == 0 else Losses(other, found)


def _in_units(losses: Losses, taus: TaskVectors) -> Losses:
    return Losses(*(loss * taus.scale**4 for loss in losses))
