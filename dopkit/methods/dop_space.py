"""What DOP's closed form is made from, and the coordinates it may be written in.

A matrix X (m, n) stands as coordinates (m, r). This module does not know how the equation is solved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from dopkit.linalg import spectra
from dopkit.linalg.parking import KEPT, Park
from dopkit.linalg.sylvester import Eigen

if TYPE_CHECKING:
    from dopkit.methods.dop_terms import Sides

Weights = tuple[float, float]  # alpha, 1 - alpha
SIGNS = (-1, 1)  # of the two tasks' terms in R; the average is +H from the merged model and -H from the incoming one


@dataclass
class Equation:
    """A X + X B = R, and the losses at X = 0, in the units of ``TaskVectors.scale``. Its tensors may be away."""

    rhs: Tensor  # R (m, r)
    left: Tensor | None  # A (m, m), None where the row side does not count
    right: Eigen | None  # B, None where the column side does not count
    losses: tuple[float, float]


class Space(Protocol):
    """Coordinates, and the objective in them. All of one dtype, in the units of ``TaskVectors.scale``.

    Made of task vectors that are here; afterwards they are away, but for what ``columns`` then asks for.
    """

    @property
    def ranks(self) -> tuple[int, int]:
        """How many directions of each task vector are kept."""

    def equation(self, weights: Weights, sides: Sides) -> Equation:
        """The equation of both tasks. Called once: it gives up what is needed for nothing else."""

    def outcome(self, distance: Tensor, rhs: Tensor, task: int, sides: Sides) -> tuple[float, float]:
        """<X, R>, and L_i of one task at the average plus X, for the coordinates ``distance`` and ``rhs`` (m, r).

        Either may be away, and is away afterwards.
        """

    def columns(self, distance: Tensor, block: slice) -> Tensor:
        """Columns of the matrix with these coordinates: (m, block). The task vectors are here."""


@dataclass(frozen=True)
class TaskVectors:
    """tau_0 and tau_1 / ``scale`` in the working dtype, made when they are asked for. m <= n."""

    base: Tensor  # (m, n) float32
    models: tuple[Tensor, Tensor]  # merged, incoming; (m, n) float32
    scale: float  # largest absolute entry of the task vectors, or 1 where their size is no matter
    park: Park = KEPT

    @classmethod
    def of(cls, base: Tensor, merged: Tensor, incoming: Tensor, park: Park = KEPT) -> TaskVectors:
        """Of three (m, n) matrices, all finite and not all equal."""
        models = (merged, incoming)
        if spectra.working_dtype(base.device) == torch.float64:  # holds the fourth power of any float32 number
            return cls(base, models, 1.0, park)
        blocks = list(spectra.column_blocks(*base.shape))
        largest = [(model[:, block] - base[:, block]).abs_().max() for model in models for block in blocks]
        return cls(base, models, float(torch.stack(largest).max()), park)

    def away(self) -> None:
        """They are not needed for a while, and what they are made from neither."""
        self.park.away(self.base, *self.models)

    def one(self, task: int, block: slice = slice(None)) -> Tensor:
        """Columns of tau_i: a new tensor. The difference of two float32 numbers is exact in float64."""
        dtype = spectra.working_dtype(self.base.device)
        tau = self.models[task][:, block].to(dtype, copy=True).sub_(self.base[:, block])
        return tau if self.scale == 1 else tau.div_(self.scale)

    def stacked(self, block: slice) -> Tensor:
        """Columns of both, one above the other: (2m, block)."""
        return torch.cat([self.one(task, block) for task in (0, 1)])

    def half_gap(self) -> Tensor:
        """H = (tau_1 - tau_0) / 2, (m, n)."""
        dtype = spectra.working_dtype(self.base.device)
        return self.models[1].to(dtype, copy=True).sub_(self.models[0]).div_(2 * self.scale)

    def move_to(self, space: Space, distance: Tensor, out: Tensor) -> None:
        """Write the average plus the matrix of coordinates ``distance`` into ``out`` (m, n), which may be a model."""
        merged, incoming = self.models
        for block in spectra.column_blocks(2 * merged.shape[0], merged.shape[1]):
            average = merged[:, block].to(distance.dtype, copy=True).add_(incoming[:, block]).div_(2)
            # rounds to float32, once
            out[:, block] = average.add_(space.columns(distance, block), alpha=self.scale)
