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

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dopkit.linalg import products, spectra
from dopkit.linalg.minnorm import min_norm_weight
from dopkit.methods.dop_terms import Losses, Sides, Solved

if TYPE_CHECKING:
    from dopkit.methods.parameters import DopParameters

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # torch.optim.Adam's defaults, which the published runs use


@dataclass(frozen=True)
class Quadratic:
    """G(W) = A (W - target) + (W - target) B, all of one dtype; B as a matrix, or as rows M with B = M^T M."""

    target: Tensor  # (m, n)
    left: Tensor | None  # A (m, m)
    right: Tensor | None  # B (n, n)
    rows: Tensor | None  # M (k, n)

    def gradient(self, point: Tensor, difference: Tensor, out: Tensor) -> Tensor:
        """Half the gradient at ``point``, into ``out``; ``difference`` is left holding point - target."""
        torch.sub(point, self.target, out=difference)
        if self.left is not None:
            torch.mm(self.left, difference, out=out)
        else:
            out.zero_()
        if self.rows is not None:
            out.addmm_(difference @ self.rows.mT, self.rows)
        elif self.right is not None:
            out.addmm_(difference, self.right)
        return out


@dataclass(frozen=True)
class Adam:
    """Adam's moments for one matrix; updates in place, in the order of operations of torch.optim.Adam."""

    first: Tensor
    second: Tensor
    scratch: Tensor
    lr: float

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
    tasks = (found[0][0], found[1][0])
    point = merged.add(incoming).div_(2)
    difference, gradient = torch.empty_like(point), torch.empty_like(point)
    before = _losses(tasks, point, difference, gradient)
    weight = alpha
    # The difference is used up when the gradient is there: its memory serves as Adam's scratch.
    adam = Adam(torch.zeros_like(point), torch.zeros_like(point), difference, parameters.lr)
    if parameters.mgda:
        other = torch.empty_like(point)
        for number in range(1, parameters.num_steps + 1):
            weight = _multi_gradient(tasks, point, difference, gradient, other, weight, parameters)
            adam.step(point, gradient, number)
    else:
        objective, constant = _fixed(tasks, alpha, point, difference, gradient)
        for number in range(1, parameters.num_steps + 1):
            objective.gradient(point, difference, out=gradient).add_(constant).mul_(2)
            adam.step(point, gradient, number)
        del objective, constant
    after = _losses(tasks, point, difference, gradient)
    return point, Solved(before, after, (found[0][1], found[1][1]), weight)


def _task(base: Tensor, model: Tensor, parameters: DopParameters, sides: Sides) -> tuple[Quadratic, int]:
    """L_i of one model as a quadratic, and the rank of its projections."""
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
            right, rows = (rows.mT @ rows).to(model.dtype), None
    return Quadratic(model, left, right, rows), leading.rank


def _fixed(
    tasks: tuple[Quadratic, Quadratic], alpha: float, start: Tensor, difference: Tensor, gradient: Tensor
) -> tuple[Quadratic, Tensor]:
    """alpha L_0 + (1 - alpha) L_1 as one quadratic about ``start``, and half its gradient there.

    Halves the products of a step: A X + X B + G(start) with the weighted sums A and B and X = W - start.
    """
    constant = tasks[0].gradient(start, difference, gradient) * alpha
    constant.add_(tasks[1].gradient(start, difference, gradient), alpha=1 - alpha)
    weights = (alpha, 1 - alpha)
    lefts = [task.left * weight for task, weight in zip(tasks, weights, strict=True) if task.left is not None]
    left = lefts[0].add_(lefts[1]) if lefts else None
    factored = [task.rows for task in tasks if task.rows is not None]
    if len(factored) == 2 and 2 * sum(rows.shape[0] for rows in factored) < start.shape[1]:
        rows = torch.cat([rows * weight**0.5 for rows, weight in zip(factored, weights, strict=True)])
        return Quadratic(start.clone(), left, None, rows), constant
    if tasks[0].rows is None and tasks[0].right is None:  # projected on one side only
        return Quadratic(start.clone(), left, None, None), constant
    right = _square(tasks[0]).mul_(alpha).add_(_square(tasks[1]), alpha=1 - alpha)
    return Quadratic(start.clone(), left, right, None), constant


def _square(task: Quadratic) -> Tensor:
    """B of one task as a new n x n matrix."""
    if task.rows is not None:
        return task.rows.mT @ task.rows
    assert task.right is not None
    return task.right.clone()


def _multi_gradient(
    tasks: tuple[Quadratic, Quadratic],
    point: Tensor,
    difference: Tensor,
    gradient: Tensor,
    other: Tensor,
    weight: float,
    parameters: DopParameters,
) -> float:
    """Leave the gradient of the weighted losses in ``gradient``; return the weight of stability used in it.

    A loss of zero (a frozen layer, or projections of rank zero) has no gradient to weigh, and the published
    code fails on it: here the weight then stays where it is.
    """
    tasks[0].gradient(point, difference, out=gradient)
    stability = _inner(difference, gradient)
    tasks[1].gradient(point, difference, out=other)
    plasticity = _inner(difference, other)
    squares = (_inner(gradient, gradient), _inner(gradient, other), _inner(other, other))
    if min(stability, plasticity, squares[0], squares[2]) > 0:
        chosen = min_norm_weight(
            squares[0] / stability / stability,
            squares[1] / stability / plasticity,
            squares[2] / plasticity / plasticity,
        )
        keep = parameters.ema_beta if parameters.ema else 0.0
        weight = keep * weight + (1 - keep) * chosen
    gradient.mul_(2 * weight).add_(other, alpha=2 * (1 - weight))
    return weight


def _losses(tasks: tuple[Quadratic, Quadratic], point: Tensor, difference: Tensor, gradient: Tensor) -> Losses:
    """L_0 and L_1 at ``point``."""
    # Rounding may take an inner product below zero.
    losses = (_inner(difference, task.gradient(point, difference, gradient)) for task in tasks)
    return Losses(*(max(0.0, loss) for loss in losses))


def _inner(left: Tensor, right: Tensor) -> float:
    """<left, right> of two matrices of one layout, without a copy of either."""
    if not left.is_contiguous():
        left, right = left.mT, right.mT
    return float(torch.dot(left.reshape(-1), right.reshape(-1)))
