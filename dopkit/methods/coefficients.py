"""Merges that are a sum of multiples of the task vectors: what each is multiplied by. Loads no torch.

A merge that goes on from an earlier one has as its first task vector what was merged, and multiplies that too.
"""

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
        total = sum(own.weight for own in sums) if sums[0].normalize else 1.0
        return [own.lambda_ * own.weight / total for own in sums]
    means = [own for own in models if isinstance(own, LinearParameters)]
    if method == "linear" and means:
        weights = [own.weight or 0.0 for own in means]
        total = sum(weights)
        if means[0].normalize:
            return [weight / total for weight in weights]
        if abs(total - 1) > _ONE:
            raise ValueError(f"the weights add up to {total:g}, so the base would be multiplied as well")
        return weights
    raise ValueError(f"{method} is no weighted sum of task vectors ({', '.join(SUMS)} are)")


def grown(method: str, earlier: Sequence[Parameters], new: Sequence[Parameters]) -> list[float]:
    """The factor of what was merged of the ``earlier`` models, then that of every new one. Raises as above."""
    before, whole = coefficients(method, earlier), coefficients(method, [*earlier, *new])
    largest = max(range(len(before)), key=lambda index: abs(before[index]))
    merged = whole[largest] / before[largest] if before[largest] else 1.0
    return [merged, *whole[len(earlier) :]]


def of_the_rest(rule: Rule, before: int, new: int) -> list[float]:
    """The factors where a method leaves a tensor to the rule MEAN or HALF: of the first one, which stands for
    ``before`` models, and of ``new`` more. Of a tensor that is taken from the base there are none.
    """
    if rule is MEAN:
        return [before / (before + new), *[1 / (before + new)] * new]
    if rule is HALF:
        return [0.5**new, *(0.5 ** (new - index) for index in range(new))]
    raise ValueError(f"{rule.name} is no weighted sum")
