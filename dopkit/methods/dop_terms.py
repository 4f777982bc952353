"""What DOP's two solvers are asked and what they answer, in plain numbers.

Knows neither the solvers nor the parameters as recipes name them. Loads no torch.
"""

from __future__ import annotations

from typing import NamedTuple

from dopkit.roles import TRANSPOSED, Role


class Sides(NamedTuple):
    """On which sides of the matrix the difference is projected."""

    rows: bool  # by the left singular vectors
    columns: bool  # by the right singular vectors

    def turned(self) -> Sides:
        """The same for the transposed matrix."""
        return Sides(rows=self.columns, columns=self.rows)


def sides_of(space: str, role: Role) -> Sides:
    """The sides of a matrix as it is stored, for ``svd_proj_space``: u is the output side, v the input side."""
    sides = Sides(rows="u" in space, columns="v" in space)
    return sides.turned() if role in TRANSPOSED else sides


class Losses(NamedTuple):
    """L_0 and L_1."""

    stability: float
    plasticity: float

    def weighted(self, alpha: float) -> float:
        return alpha * self.stability + (1 - alpha) * self.plasticity


class Solved(NamedTuple):
    """What is known after a solve."""

    before: Losses  # at the average of the two models
    after: Losses
    ranks: tuple[int, int]
    weight: float  # of stability, at the end
