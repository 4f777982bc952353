"""Rules that pick the scale of a merged task vector from the weights alone. Matrices, not models; nothing is scored.

D is the merged task vector before scaling, tau_t the experts'; norms and products are Frobenius'. A rule gives one
scale for the whole model, or one for every tensor (a matrix, or whatever is no matrix as a matrix of shape [d0, rest]).
"""

from typing import NamedTuple

import torch
from torch import Tensor

Weights = dict[str, Tensor]
Scales = dict[str, float]  # by tensor


class Facts(NamedTuple):
    """What the rules know of one tensor; `t` runs over the experts."""

    merged_square: float  # ||D||^2
    squares: list[float]  # ||tau_t||^2
    products: list[float]  # <D, tau_t>
    top_merged: float  # largest singular value of D
    tops: list[float]  # of tau_t
    wanted: float  # sum over t of <D tau_t^T, tau_t tau_t^T> / ||tau_t||^2, for matrices that act on inputs
    caused: float  # sum over t of ||D tau_t^T||^2 / ||tau_t||^2


def scales(merged: Weights, tasks: list[Weights]) -> dict[str, Scales]:
    """What every rule says, by its name."""
    facts = {name: _facts(name, tensor, [task[name] for task in tasks]) for name, tensor in merged.items()}
    whole = _together(list(facts.values()))
    count, line = len(tasks), _line(whole)
    uniform = {
        "1": 1.0,
        "sqrt(T)": count**0.5,
        "norm": _norm(whole),
        "nearest": _over(sum(whole.products), count * whole.merged_square),
        "sum": _over(sum(whole.products), whole.merged_square),
        "match": _over(sum(whole.squares), sum(whole.products)),
        "interference": line,
    }
    return {rule: dict.fromkeys(merged, scale) for rule, scale in uniform.items()} | {
        "norm, each tensor": {name: _norm(fact) for name, fact in facts.items()},
        "spectral, each tensor": {name: _over(sum(fact.tops) / count, fact.top_merged) for name, fact in facts.items()},
        "interference, each tensor": {name: _line(fact) if fact.caused else line for name, fact in facts.items()},
    }


def _norm(fact: Facts) -> float:
    """So that ||s D|| is the mean of ||tau_t||: OPCM's rule, dopkit's `scale: norm`."""
    return _over(sum(square**0.5 for square in fact.squares) / len(fact.squares), fact.merged_square**0.5)


def _line(fact: Facts) -> float:
    """The least sum over t of ||(s D - tau_t) tau_t^T||^2 / ||tau_t||^2: WUDI's objective, with s alone to choose."""
    return _over(fact.wanted, fact.caused)


def _over(one: float, other: float) -> float:
    """The quotient; 1 where there is nothing to scale."""
    return one / other if other > 0 and one > 0 else 1.0


def _facts(name: str, merged: Tensor, tasks: list[Tensor]) -> Facts:
    one, others = _matrix(merged), [_matrix(task) for task in tasks]
    squares = [float(task.square().sum()) for task in others]
    wanted = caused = 0.0
    if merged.ndim == 2 and "embedding" not in name:
        for task, square in zip(others, squares, strict=True):
            if square:
                inputs = task.T @ task
                wanted += float(((one.T @ task) * inputs).sum()) / square
                caused += float(((one.T @ one) * inputs).sum()) / square
    return Facts(
        float(one.square().sum()),
        squares,
        [float((one * task).sum()) for task in others],
        _top(one),
        [_top(task) for task in others],
        wanted,
        caused,
    )


def _matrix(tensor: Tensor) -> Tensor:
    return tensor.double().reshape(len(tensor), -1) if tensor.ndim > 1 else tensor.double().reshape(1, -1)


def _top(matrix: Tensor) -> float:
    short = matrix if len(matrix) <= matrix.shape[1] else matrix.T
    return max(0.0, float(torch.linalg.eigvalsh(short @ short.T)[-1])) ** 0.5


def _together(facts: list[Facts]) -> Facts:
    """Of the whole model: all but the singular values adds up."""

    def experts(column: list[list[float]]) -> list[float]:
        return [sum(values) for values in zip(*column, strict=True)]

    return Facts(
        sum(fact.merged_square for fact in facts),
        experts([fact.squares for fact in facts]),
        experts([fact.products for fact in facts]),
        0.0,
        [],
        sum(fact.wanted for fact in facts),
        sum(fact.caused for fact in facts),
    )
