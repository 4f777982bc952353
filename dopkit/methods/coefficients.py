"""Merges that are a sum of multiples of the task vectors: what each is multiplied by. Loads no torch."""

from __future__ import annotations

from collections.abc import Sequence

from dopkit.methods.delta_parameters import TaskArithmeticParameters
from dopkit.methods.interpolation_parameters import LinearParameters
from dopkit.methods.parameters import Parameters

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
