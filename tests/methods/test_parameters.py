"""Unit tests for the parameters of the built-in methods: defaults, bounds, and what has no effect."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from dopkit.methods.parameters import AverageParameters, DopParameters


def refusal(**values: Any) -> list[tuple[str, str]]:
    """Place and message of every error."""
    with pytest.raises(ValidationError) as caught:
        DopParameters.model_validate(values)
    return [(".".join(map(str, detail["loc"])), detail["msg"]) for detail in caught.value.errors()]


def test_the_defaults_are_the_published_ones() -> None:
    assert DopParameters().model_dump() == {
        "solver": "exact",
        "alpha": 0.8,
        "svd_epsilon": 0.99999,
        "svd_proj_space": "uv",
        "rank_rule": "at-least",
        "other": "mean",
        "exclude": (),
        "lr": 1e-4,
        "num_steps": 200,
        "mgda": True,
        "ema": True,
        "ema_beta": 0.999,
    }


@pytest.mark.parametrize(
    ("values", "where", "message"),
    [
        ({"alpha": 1.5}, "alpha", "Value error, alpha: 1.5 is not between 0 and 1"),
        ({"alpha": -0.1}, "alpha", "Value error, alpha: -0.1 is not between 0 and 1"),
        ({"alpha": float("nan")}, "alpha", "Value error, alpha: nan is not between 0 and 1"),
        ({"alpha": True}, "alpha", "Value error, alpha: True is neither a number from 0 to 1 nor 'by-count'"),
        ({"alpha": "0.5"}, "alpha", "Value error, alpha: '0.5' is neither a number from 0 to 1 nor 'by-count'"),
        ({"alpha": [0, 1]}, "alpha", "Value error, alpha: [0, 1] is neither a number from 0 to 1 nor 'by-count'"),
        ({"alpha": None}, "alpha", "Value error, alpha: None is neither a number from 0 to 1 nor 'by-count'"),
        ({"svd_epsilon": 0}, "svd_epsilon", "Input should be greater than 0"),
        ({"svd_epsilon": 1.1}, "svd_epsilon", "Input should be less than or equal to 1"),
        ({"svd_epsilon": True}, "svd_epsilon", "Input should be a valid number"),
        ({"svd_epsilon": float("nan")}, "svd_epsilon", "Input should be a finite number"),
        ({"svd_proj_space": "w"}, "svd_proj_space", "Input should be 'uv', 'u' or 'v'"),
        ({"solver": "adam", "num_steps": True}, "num_steps", "Input should be a valid integer"),
        ({"solver": "adam", "num_steps": -1}, "num_steps", "Input should be greater than or equal to 0"),
        ({"solver": "adam", "lr": "1e-4"}, "lr", "Input should be a valid number"),
        ({"solver": "adam", "lr": float("inf")}, "lr", "Input should be a finite number"),
        ({"solver": "adam", "mgda": 1}, "mgda", "Input should be a valid boolean"),
        ({"exclude": [1]}, "exclude.0", "Input should be a valid string"),
        ({"alhpa": 0.5}, "alhpa", "Extra inputs are not permitted"),
    ],
)
def test_a_value_out_of_bounds_or_of_another_kind_is_refused(values: dict[str, Any], where: str, message: str) -> None:
    assert refusal(**values) == [(where, message)]


@pytest.mark.parametrize("alpha", [0, 1, 0.5, "by-count"])
def test_alpha_is_a_share_or_by_count(alpha: float | str) -> None:
    found = DopParameters.model_validate({"alpha": alpha}).alpha
    assert found == alpha
    assert isinstance(found, str if alpha == "by-count" else float)


def test_alpha_at_a_step() -> None:
    assert [DopParameters(alpha=0.7).alpha_at(step) for step in (2, 3)] == [0.7, 0.7]
    assert [DopParameters(alpha="by-count").alpha_at(step) for step in (2, 3, 4)] == [1 / 2, 2 / 3, 3 / 4]


@pytest.mark.parametrize("value", ["head.*", ["head.*"], ("head.*",)])
def test_patterns_are_one_or_many(value: Any) -> None:
    assert DopParameters.model_validate({"exclude": value}).exclude == ("head.*",)


EXACT = "solver: exact solves in closed form for a fixed alpha"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": 1e-3}, f"Value error, 'lr' has no effect: {EXACT}"),
        ({"mgda": False, "ema": True, "lr": 1.0},
         f"Value error, 'ema' has no effect: {EXACT}; 'lr' has no effect: {EXACT}; 'mgda' has no effect: {EXACT}"),
        ({"solver": "adam", "mgda": False, "ema_beta": 0.5},
         "Value error, 'ema_beta' has no effect: with mgda: false the weight stays at alpha"),
        ({"solver": "adam", "ema": False, "ema_beta": 0.5},
         "Value error, 'ema_beta' has no effect: with ema: false there is no moving average"),
    ],
)  # fmt: skip
def test_a_parameter_without_effect_is_refused(values: dict[str, Any], message: str) -> None:
    assert refusal(**values) == [("", message)]


@pytest.mark.parametrize(
    ("values", "missing"),
    [
        ({}, {"lr", "num_steps", "mgda", "ema", "ema_beta"}),
        ({"solver": "adam"}, set()),
        ({"solver": "adam", "mgda": False}, {"ema", "ema_beta"}),
        ({"solver": "adam", "ema": False}, {"ema_beta"}),
    ],
)
def test_what_is_in_force_is_what_may_be_given(values: dict[str, Any], missing: set[str]) -> None:
    parameters = DopParameters.model_validate(values)
    in_force = parameters.in_force()
    assert DopParameters.model_fields.keys() - in_force.keys() == missing
    assert DopParameters.model_validate(in_force) == parameters
    assert in_force["exclude"] == []  # YAML data


def test_parameters_are_frozen() -> None:
    with pytest.raises(ValidationError, match="Instance is frozen"):
        DopParameters().alpha = 0.5  # type: ignore[misc]


def test_average_has_nothing_to_set() -> None:
    assert AverageParameters().in_force() == {}
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        AverageParameters.model_validate({"weight": 1})


def test_every_parameter_says_what_it_is() -> None:
    assert [name for name, field in DopParameters.model_fields.items() if not field.description] == []
