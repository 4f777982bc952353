"""DOP's equation in the joint row space of the two task vectors: for wide matrices (m, n), n > 2m.

All rows lie in that space, so a matrix is written as its (m, 2m) coefficients on the stacked task vectors T (2m, n),
and all that is asked of T is its Gram matrix G = T T^T. Nothing of width n is held beside the models themselves, and
most products are with blocks of G that are there already: with H = [-I I] / 2 on T, A_i H is [-A_i A_i] / 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dopkit.linalg import spectra, sylvester
from dopkit.linalg.products import add_gram, mirrored
from dopkit.linalg.spectra import Leading
from dopkit.linalg.sylvester import Eigen
from dopkit.methods.dop_space import SIGNS, Equation, TaskVectors, Weights
from dopkit.methods.dop_terms import Sides

THIN = 0.9  # B's eigenproblem, most of the work, is as large as the directions kept of both tasks


class JointRows:
    """A ``Space`` whose coordinates are coefficients on T."""

    def __init__(self, taus: TaskVectors, epsilon: float, rule: spectra.RankRule) -> None:
        self._taus, self._park = taus, taus.park
        rows, columns = taus.base.shape
        self._blocks = (slice(0, rows), slice(rows, 2 * rows))  # the coordinates that belong to tau_i
        dtype = spectra.working_dtype(taus.base.device)
        total = torch.zeros(2 * rows, 2 * rows, dtype=dtype, device=taus.base.device)
        for block in spectra.column_blocks(2 * rows, columns):
            add_gram(total, taus.stacked(block))
        taus.away()
        self._gram = mirrored(total)
        grams = [self._gram[block, block].contiguous() for block in self._blocks]
        self._leading = [spectra.leading_directions(one, epsilon, rule, THIN) for one in grams]

    @property
    def ranks(self) -> tuple[int, int]:
        return self._leading[0].rank, self._leading[1].rank

    def equation(self, weights: Weights, sides: Sides) -> Equation:
        first, second = self._blocks
        dual = (self._gram[second] - self._gram[first]).div_(2)  # H G
        rhs, losses = torch.zeros_like(dual), []
        left = dual.new_zeros(dual.shape[0], dual.shape[0]) if sides.rows else None
        for task, (weight, block) in enumerate(zip(weights, self._blocks, strict=True)):
            pulled = torch.zeros_like(dual)
            if sides.columns:  # X B_i = (X G)_i P_i
                pulled[:, block] = self._leading[task].projected_rows(dual[:, block])
            if left is not None:
                energy = self._energy(task)
                pulled[:, first].sub_(energy, alpha=0.5)
                pulled[:, second].add_(energy, alpha=0.5)
                left.add_(energy, alpha=weight)
            rhs.add_(pulled, alpha=SIGNS[task] * weight)
            losses.append(max(0.0, float(pulled.mul_(dual).sum())))
        del dual, pulled
        self._park.away(rhs, left)
        right = self._right(weights) if sides.columns else None
        self._park.away(self._gram)
        return Equation(rhs, left, right, (losses[0], losses[1]))

    def outcome(self, distance: Tensor, rhs: Tensor, task: int, sides: Sides) -> tuple[float, float]:
        self._park.here(self._gram, distance, rhs)
        dual = distance @ self._gram
        gain = float((dual * rhs).sum())
        difference = distance.clone()
        for block, half in zip(self._blocks, (0.5, -0.5), strict=True):  # less H, or plus H
            dual.add_(self._gram[block], alpha=half * SIGNS[task])
            difference[:, block].diagonal().add_(half * SIGNS[task])
        loss = 0.0
        if sides.columns:  # D tau_i^T is the i-th block of D G
            loss += float(self._leading[task].projected_rows(dual[:, self._blocks[task]]).square().sum())
        if sides.rows:
            loss += float((self._energy(task) @ difference).mul_(dual).sum())
        self._park.away(self._gram, distance, rhs)
        return gain, max(0.0, loss)  # rounding may take an inner product below zero

    def columns(self, distance: Tensor, block: slice) -> Tensor:
        return distance @ self._taus.stacked(block)

    def _energy(self, task: int) -> Tensor:
        """A_i, which may be a part of G."""
        block = self._blocks[task]
        return self._leading[task].energy(self._gram[block, block])

    def _right(self, weights: Weights) -> Eigen:
        """B = sum c_i T_i^T P_i T_i = N^T N through N N^T, which is a matrix of blocks of G.

        A task of weight zero must not shape the basis: alpha = 0 and alpha = 1 then are no special cases.
        """
        tasks = [task for task in (0, 1) if weights[task] > 0]
        product = self._product(tasks, weights)
        bases = [vectors for leading in self._leading for vectors in leading.vectors]
        self._park.away(self._gram, *bases)
        values, mixing = sylvester.curved(product)
        del product
        self._park.here(self._gram, *bases)
        vectors = self._gram.new_zeros(self._gram.shape[0], values.numel())
        root, start = values.sqrt(), 0
        for task in tasks:
            piece = mixing[start : start + self._length(task)]
            start += piece.shape[0]
            vectors[self._blocks[task]] = self._leading[task].expanded(piece).mul_(weights[task] ** 0.5).div_(root)
        del piece, mixing
        return Eigen(values, vectors, self._dual(vectors, values, weights))

    def _product(self, tasks: list[int], weights: Weights) -> Tensor:
        """N N^T with N_i = sqrt(c_i) U_i^T tau_i, or P_i tau_i."""
        whole = []
        for task in tasks:
            row = []
            for other in tasks:
                one, two = self._leading[task], self._leading[other]
                if task == other:
                    block = self._energy(task) if one.kept is None else torch.diag(_values(one).square())
                else:
                    block = one.reduced(two.reduced(self._gram[self._blocks[other], self._blocks[task]]).mT)
                row.append(block * (weights[task] * weights[other]) ** 0.5)
            whole.append(torch.cat(row, dim=1))
        return torch.cat(whole)

    def _dual(self, vectors: Tensor, values: Tensor, weights: Weights) -> Tensor:
        """G V for eigenvectors V. On the directions kept it is V b / c_i, as B V = V b; the others are few."""
        if min(weights) <= 0 or any(one.kept is not None for one in self._leading):
            return self._gram @ vectors
        dual = torch.empty_like(vectors)
        for weight, block, leading in zip(weights, self._blocks, self._leading, strict=True):
            torch.mul(vectors[block], values / weight, out=dual[block])
            if (out := leading.left_out) is not None:
                dual[block].addmm_(out, (out.mT @ self._gram[block]) @ vectors)
        return dual

    def _length(self, task: int) -> int:
        leading = self._leading[task]
        return self._taus.base.shape[0] if leading.kept is None else leading.rank


def _values(leading: Leading) -> Tensor:
    assert leading.values is not None
    return leading.values
