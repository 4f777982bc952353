"""Where DOP's closed form is solved: coordinates for the rows of two task vectors, no wider than they need.

A matrix X (m, n) stands as coordinates (m, r). This module does not know the objective.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dopkit.linalg import spectra
from dopkit.linalg.spectra import Leading


@dataclass(frozen=True)
class Space:
    """The space in which the rows of the task vectors are written, in float64 and scaled to entries up to 1.

    n <= 2m: the n columns themselves. n > 2m: all rows lie in the joint row space of the two task vectors, so
    a matrix is written as its (m, 2m) coefficients on the stacked task vectors T (2m, n), with ``gram`` = T
    T^T / scale^2. Nothing of width n is then held beside the models themselves.
    """

    base: Tensor  # (m, n) float32
    models: tuple[Tensor, Tensor]  # merged, incoming; (m, n) float32
    scale: float  # largest absolute entry of the task vectors
    gram: Tensor | None  # (2m, 2m), or None where the coordinates are the columns

    def task_vector(self, task: int) -> Tensor:
        """tau_i / scale where the coordinates are the columns, (m, n)."""
        return _task_vector(self.base, self.models[task], slice(None)).div_(self.scale)

    def _block(self, task: int) -> slice:
        """The coordinates that belong to tau_i among the stacked ones."""
        rows = self.base.shape[0]
        return slice(task * rows, (task + 1) * rows)

    def task_gram(self, task: int) -> Tensor:
        """tau_i tau_i^T / scale^2, a new (m, m) tensor."""
        if self.gram is not None:
            return self.gram[self._block(task), self._block(task)].clone()
        tau = self.task_vector(task)
        return tau @ tau.mT

    def task_rows(self, task: int, leading: Leading) -> Tensor:
        """U_i^T tau_i / scale, a new (k, r) tensor; tau_i / scale when every direction is kept."""
        if self.gram is None:
            return leading.project(self.task_vector(task))
        columns = self.gram.shape[0]
        if leading.vectors is None:
            return torch.eye(columns, dtype=self.gram.dtype, device=self.gram.device)[self._block(task)]
        rows = self.gram.new_zeros(leading.rank, columns)
        rows[:, self._block(task)] = leading.vectors.mT
        return rows

    def half_gap(self) -> Tensor:
        """H = (tau_1 - tau_0) / (2 scale), (m, r)."""
        if self.gram is None:
            return self.task_vector(1).sub_(self.task_vector(0)).div_(2)
        rows = self.base.shape[0]
        halves = torch.eye(rows, dtype=self.gram.dtype, device=self.gram.device).div_(2)
        return torch.cat((-halves, halves), dim=1)

    def dual(self, matrix: Tensor) -> Tensor:
        """X G: times the transposed coordinates of another matrix, the inner products of their rows."""
        return matrix if self.gram is None else matrix @ self.gram

    def move_to(self, distance: Tensor, out: Tensor) -> None:
        """Write average + scale * distance into ``out`` (m, n), which may be one of the models."""
        merged, incoming = self.models
        for block in spectra.column_blocks(2 * merged.shape[0], merged.shape[1]):
            average = merged[:, block].to(distance.dtype, copy=True).add_(incoming[:, block]).div_(2)
            if self.gram is None:
                average.add_(distance[:, block], alpha=self.scale)
            else:
                average.addmm_(distance, _stacked(self.base, self.models, block, distance.dtype))
            out[:, block] = average  # rounds to float32, once


def _task_vector(base: Tensor, model: Tensor, block: slice) -> Tensor:
    """Columns of tau in the working dtype: the difference of two float32 numbers is exact in float64."""
    dtype = spectra.working_dtype(base.device)
    return model[:, block].to(dtype, copy=True).sub_(base[:, block])


def _stacked(base: Tensor, models: tuple[Tensor, Tensor], block: slice, dtype: torch.dtype) -> Tensor:
    """Columns of both task vectors, one above the other: (2m, block)."""
    rows = base.shape[0]
    both = torch.cat([model[:, block] for model in models]).to(dtype)
    both[:rows] -= base[:, block]
    both[rows:] -= base[:, block]
    return both


def open_space(base: Tensor, merged: Tensor, incoming: Tensor) -> Space:
    """The space for these three (m, n) matrices, m <= n, all finite and not all equal."""
    models = (merged, incoming)
    rows, columns = base.shape
    dtype = spectra.working_dtype(base.device)
    scale = max(
        float(_task_vector(base, model, block).abs_().max())
        for model in models
        for block in spectra.column_blocks(rows, columns)
    )
    if columns <= 2 * rows:
        return Space(base, models, scale, None)
    gram = torch.zeros(2 * rows, 2 * rows, dtype=dtype, device=base.device)
    for block in spectra.column_blocks(2 * rows, columns):
        both = _stacked(base, models, block, dtype).div_(scale)
        gram.addmm_(both, both.mT)
    return Space(base, models, scale, gram)
