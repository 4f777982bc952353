"""DOP's objective, minimised as published: Adam steps with weights by multi-gradient descent (MGDA).

The same losses as in ``dop_exact``, with the gradients written out instead of differentiated:

    dL_i/dW = 2 G_i,   L_i = <D_i, G_i>,   G_i = A_i D_i + D_i B_i,   D_i = W - W_i

Each step of the published procedure divides the two gradients by their losses, finds the point of least norm
between them, smooths the weight by an exponential moving average, and takes an Adam step on the weighted sum
of the raw losses. Weight, moving average and Adam's moments start anew for every matrix and every model.
Source: Yang et al., NeurIPS 2025, https://openreview.net/forum?id=zD5cUX67b9, and its code in FusionBench.

The steps are taken in the precision of the models: float32 as a rule, as published. They are not scale-free: a
gradient goes as the third power of the task vector, so with entries near 1e-5 and below it vanishes under Adam's
epsilon (1e-8) and the result stays near the plain average; and one step moves an entry by about ``lr`` at most, however
large the task vectors are. ``solver: exact`` has neither limit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dopkit.linalg import products, spectra
from dopkit.linalg.minnorm import min_norm_weight
from dopkit.methods.dop_terms import Losses, Sides, Solved

if TYPE_CHECKING:
    from dopkit.methods.parameters import DopParameters

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # torch.optim.Adam's defaults, which the published runs use


BLOCK = 1 << 15  # elements whose products are added up in one go: few enough to stay in a cache


@dataclass(frozen=True)
class Quadratic:
    """Half the gradient of a loss as a function of the way x from the mean of the two models, all of one dtype:

    G(x) = A x + x B + G(0); B as a matrix, or as rows M with B = M^T M.
    """

    constant: Tensor  # G(0), (m, n)
    left: Tensor | None  # A (m, m)
    right: Tensor | None  # B (n, n)
    rows: Tensor | None  # M (k, n)

    def gradient(self, way: Tensor, out: Tensor) -> Tensor:
        """G(``way``), into ``out``."""
        return self._add_products(way, out.copy_(self.constant))

    def about(self, gap: Tensor) -> Quadratic:
        """The same with G(0) = A ``gap`` + ``gap`` B: what it is where the mean is that far from the target."""
        return replace(self, constant=self._add_products(gap, torch.zeros_like(gap)))

    def _add_products(self, way: Tensor, out: Tensor) -> Tensor:
        if self.left is not None:
            out.addmm_(self.left, way)
        if self.rows is not None:
            out.addmm_(way @ self.rows.mT, self.rows)
        elif self.right is not None:
            out.addmm_(way, self.right)
        return out


class Room:
    """The matrices of a step, side by side in memory: the way from the mean, half the gap, both gradients.

    So one product finds all inner products that multi-gradient descent asks for, added up in float64 block by block.
    """

    def __init__(self, like: Tensor) -> None:
        count = like.numel()
        block = max(1, min(BLOCK, count))
        self._all = like.new_zeros(4, -(-count // block) * block)
        self.way, self.gap, self.first, self.second = (row[:count].view(like.shape) for row in self._all)
        self._blocks = self._all.view(4, -1, block).transpose(0, 1)  # (blocks, 4, block)

    def products(self) -> tuple[float, float, float, float, float]:
        """L_0, L_1, and <G_0, G_0>, <G_0, G_1>, <G_1, G_1>: with D_0 = x + H and D_1 = x - H, L_i = <D_i, G_i>."""
        table = torch.bmm(self._blocks, self._blocks[:, 2:].mT).to(spectra.working_dtype(self._all.device)).sum(0)
        way, gap, first, second = table.tolist()  # with G_0 and with G_1
        return way[0] + gap[0], way[1] - gap[1], first[0], first[1], second[1]


@dataclass(frozen=True)
class Adam:
    """Adam's moments for one matrix; updates in place, in the order of operations of torch.optim.Adam."""

    first: Tensor
    second: Tensor
    scratch: Tensor
    lr: float

    @classmethod
    def zeros(cls, like: Tensor, lr: float) -> Adam:
        return cls(torch.zeros_like(like), torch.zeros_like(like), torch.empty_like(like), lr)

    def step(self, point: Tensor, gradient: Tensor, number: int) -> None:
        """Move ``point`` by the ``number``-th step (from 1)."""
        self.first.lerp_(gradient, 1 - BETA1)
        self.second.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
        torch.sqrt(self.second, out=self.scratch)
        self.scratch.div_((1 - BETA2**number) ** 0.5).add_(EPSILON)
        point.addcdiv_(self.first, self.scratch, value=-self.lr / (1 - BETA1**number))


def minimise(
    base: Tensor, merged: Tensor, incoming: Tensor, alpha: float, parameters: DopParameters, sides: Sides
) -> tuple[Tensor, Solved]:
    """The matrix after ``num_steps`` steps from the average of the two models, and what is known then.

    All matrices are (m, n), of one dtype, finite, and the two models differ. The spectra are found in float64
    (float32 on a device without it) before the steps.
    """
    found = [_task(base, model, parameters, sides) for model in (merged, incoming)]
    mean = merged.add(incoming).div_(2)
    room = Room(mean)
    torch.sub(mean, merged, out=room.gap)
    tasks = (found[0][0].about(room.gap), found[1][0].about(-room.gap))
    before, weight = _losses(tasks, room), alpha
    objective = None if parameters.mgda else _fixed(tasks, alpha)
    # The steps move the matrix itself, so that they round as the published ones do.
    point, adam = mean.clone(), Adam.zeros(mean, parameters.lr)
    for number in range(1, parameters.num_steps + 1):
        if objective is None:
            weight = _multi_gradient(tasks, room, weight, parameters)
        else:
            objective.gradient(room.way, room.first).mul_(2)
        adam.step(point, room.first, number)
        torch.sub(point, mean, out=room.way)
    return point, Solved(before, _losses(tasks, room), (found[0][1], found[1][1]), weight)


def _losses(tasks: tuple[Quadratic, Quadratic], room: Room) -> Losses:
    """What rounding leaves of L_0 and L_1, which are not negative."""
    tasks[0].gradient(room.way, room.first)
    tasks[1].gradient(room.way, room.second)
    stability, plasticity, *_ = room.products()
    return Losses(max(0.0, stability), max(0.0, plasticity))


def _task(base: Tensor, model: Tensor, parameters: DopParameters, sides: Sides) -> tuple[Quadratic, int]:
    """The products of L_i of one model, without a constant, and the rank of its projections."""
    dtype = spectra.working_dtype(base.device)
    tau = model.to(dtype, copy=True).sub_(base)
    gram = products.gram(tau)
    leading = spectra.leading_directions(gram, parameters.svd_epsilon, parameters.rank_rule, thin=1.0)
    left = leading.energy(gram).to(model.dtype) if sides.rows else None
    del gram
    right = rows = None
    if sides.columns:
        rows = leading.reduced(tau)
        del tau
        if 2 * rows.shape[0] < rows.shape[1]:  # two thin products cost less than one with an n x n matrix
            rows = rows.to(model.dtype)
        else:
            right, rows = products.gram(rows.mT).to(model.dtype), None
    return Quadratic(base.new_zeros(0), left, right, rows), leading.rank


def _fixed(tasks: tuple[Quadratic, Quadratic], alpha: float) -> Quadratic:
    """alpha L_0 + (1 - alpha) L_1 as one quadratic, which halves the products of a step."""
    weights = (alpha, 1 - alpha)
    constant = tasks[0].constant.mul(alpha).add_(tasks[1].constant, alpha=1 - alpha)
    lefts = [task.left * weight for task, weight in zip(tasks, weights, strict=True) if task.left is not None]
    left = lefts[0].add_(lefts[1]) if lefts else None
    factored = [task.rows for task in tasks if task.rows is not None]
    if len(factored) == 2 and 2 * sum(rows.shape[0] for rows in factored) < constant.shape[1]:
        rows = torch.cat([rows * weight**0.5 for rows, weight in zip(factored, weights, strict=True)])
        return Quadratic(constant, left, None, rows)
    if tasks[0].rows is None and tasks[0].right is None:  # projected on one side only
        return Quadratic(constant, left, None, None)
    right = _square(tasks[0]).mul_(alpha).add_(_square(tasks[1]), alpha=1 - alpha)
    return Quadratic(constant, left, right, None)


def _square(task: Quadratic) -> Tensor:
    """B of one task as a new n x n matrix."""
    if task.rows is not None:
        return products.gram(task.rows.mT)
    assert task.right is not None
    return task.right.clone()


def _multi_gradient(tasks: tuple[Quadratic, Quadratic], room: Room, weight: float, parameters: DopParameters) -> float:
    """Leave the gradient of the weighted losses in ``room.first``; return the weight of stability used in it.

    A loss of zero (a frozen layer, or projections of rank zero) has no gradient to weigh, and the published
    code fails on it: here the weight then stays where it is.
    """
    tasks[0].gradient(room.way, room.first)
    tasks[1].gradient(room.way, room.second)
    stability, plasticity, *squares = room.products()
    if min(stability, plasticity, squares[0], squares[2]) > 0:
        chosen = min_norm_weight(
            squares[0] / stability / stability,
            squares[1] / stability / plasticity,
            squares[2] / plasticity / plasticity,
        )
        keep = parameters.ema_beta if parameters.ema else 0.0
        weight = keep * weight + (1 - keep) * chosen
    room.first.mul_(2 * weight).add_(room.second, alpha=2 * (1 - weight))
    return weight
