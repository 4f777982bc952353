"""Weighted means and sums by hand."""

from __future__ import annotations

import pytest
import torch
from methods.folding import fold, join

import dopkit
from dopkit.errors import RecipeError
from dopkit.methods.interpolation_parameters import LinearParameters, PassthroughParameters
from dopkit.methods.mergekit_rules import LINEAR, LINEAR_SUM, PASSTHROUGH


def linear(weights: list[float], values: list[float], normalize: bool = True) -> float:
    parameters = [LinearParameters(weight=weight, normalize=normalize) for weight in weights]
    models = [torch.tensor([float(value)]) for value in values]
    return fold(LINEAR if normalize else LINEAR_SUM, parameters, torch.zeros(1), models)[0].item()


def test_by_hand() -> None:
    assert linear([1, 3], [4, 8]) == 7
    assert linear([1, 3], [4, 8], normalize=False) == 28
    assert linear([2, 2], [1, 5]) == 3
    assert linear([0, 1], [1, 5]) == 5


def test_weights_may_cancel_out_on_the_way() -> None:
    """1 - 1 + 2, and in between nothing to divide by."""
    assert linear([1, -1, 2], [3, 5, 7]) == (3 - 5 + 14) / 2


def test_weights_that_add_up_to_zero_are_refused() -> None:
    text = "merge_method: linear\nmodels:\n- {model: u/a, parameters: {weight: 1}}\n"
    text += "- {model: u/b, parameters: {weight: -1}}\n"
    with pytest.raises(RecipeError) as caught:
        dopkit.parse_recipe(text)
    (problem,) = caught.value.problems
    assert (problem.place, problem.what.partition(":")[0]) == (
        "line 2", "their weights add up to zero, so there is no mean of them",
    )  # fmt: skip
    assert dopkit.parse_recipe(text + "parameters: {normalize: false}\n").merge_method == "linear"


def test_passthrough() -> None:
    one = torch.tensor([1.0, 2, 3])
    assert join(PASSTHROUGH, PassthroughParameters(), one, [one])[0].tolist() == [1, 2, 3]
    assert join(PASSTHROUGH, PassthroughParameters(scale=-2.0), one, [one])[0].tolist() == [-2, -4, -6]
