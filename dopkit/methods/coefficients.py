"""Merges that are a sum of multiples of the task vectors: what each is multiplied by. Loads no torch."""

from __future__ import annotations

from collections.abc import Sequence

from dopkit.methods.delta_parameters import TaskArithmeticParameters
from dopkit.methods.interpolation_parameters import LinearParameters
from dopkit.methods.parameters import Parameters
from dopkit.methods.rule import Rule
from dopkit.methods.rules import HALF, MEAN

SUMS = ("average", "linear", "task_arithmetic")
_ONE = 1e-6  # how far from it weights may add up


def coefficients(method: str, models: Sequence[Parameters]) -> list[float]:
    """The factor of every task vector, by the method's name and its parameters for each model, in merge order.

    Raises ValueError with the reason why the merge is no such sum, as a clause.
    """
    if method == "average":
        return [1 / len(models)] * len(models)
    sums = [own for own in models if isinstance(own, TaskArithmeticParameters)]
    if method == "task_arithmetic" and sums:
        total = _not_zero(sum(own.weight for own in sums)) if sums[0].normalize else 1.0
        return [own.lambda_ * own.weight / total for own in sums]
    means = [own for own in models if isinstance(own, LinearParameters)]
    if method == "linear" and means:
        weights = [own.weight or 0.0 for own in means]
        total = sum(weights)
        if means[0].normalize:
            return [weight / _not_zero(total) for weight in weights]
        if abs(total - 1) > _ONE:
            raise ValueError(f"the weights add up to {total:g}, so the base would be multiplied as well")
        return weights
    raise ValueError(f"{method} is no weighted sum of task vectors ({', '.join(SUMS)} are)")


def _not_zero(total: float) -> float:
    if total == 0:
        raise ValueError("the weights add up to 0, and are divided by that")
    return total


# For every task vector in turn, what the sum of those before it is multiplied by, and what it itself is. The first one
# of a merge that goes on from an earlier one is what was merged: by the same steps, with the roundings of one run.
Turns = tuple[tuple[float, float], ...]


def turns(method: str, models: Sequence[Parameters], merged: int = 0) -> Turns:
    """A sum in turn, of all ``models``; the first ``merged`` of them were merged before. Raises as above."""
    if method == "average":
        return means(max(1, merged), len(models) - max(1, merged))
    whole = coefficients(method, models)
    if not merged:
        return tuple((1.0, weight) for weight in whole)
    earlier = coefficients(method, models[:merged])
    largest = max(range(merged), key=lambda index: abs(earlier[index]))
    first = whole[largest] / earlier[largest] if earlier[largest] else 1.0
    return ((1.0, first), *((1.0, weight) for weight in whole[merged:]))


def means(before: int, new: int) -> Turns:
    """The mean of ``before`` models, merged into one, and of ``new`` more."""
    return ((1.0, 1.0), *((step / (step + 1), 1 / (step + 1)) for step in range(before, before + new)))


def of_the_rest(rule: Rule, before: int, new: int) -> Turns:
    """The same where a method leaves a tensor to MEAN or HALF."""
    if rule is HALF:
        return ((1.0, 1.0), *[(0.5, 0.5)] * new)
    assert rule is MEAN, f"{rule.name} is no weighted sum"
    return means(before, new)
