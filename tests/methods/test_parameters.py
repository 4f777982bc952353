"""Unit tests for the parameters of the built-in methods: defaults, bounds, and what has no effect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import dopkit
from dopkit.errors import DopkitError
from dopkit.methods import BUILTIN
from dopkit.methods.delta_parameters import TaskArithmeticParameters
from dopkit.methods.parameters import AverageParameters, DopParameters


def refusal(**values: Any) -> list[tuple[str, str]]:
    """Place and message of every error."""
    with pytest.raises(ValidationError) as caught:
        DopParameters.model_validate(values)
    return [(".".join(map(str, detail["loc"])), detail["msg"]) for detail in caught.value.errors()]


def test_the_defaults_are_the_published_ones() -> None:
    assert DopParameters().model_dump() == {
        "solver": "exact",
        "history": "last",
        "alpha": 0.8,
        "svd_epsilon": 0.99999,
        "svd_proj_space": "uv",
        "rank_rule": "at-least",
        "scale": 1.0,
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
        ({"scale": 0}, "scale", "Value error, scale: 0 is not a number above 0"),
        ({"scale": float("inf")}, "scale", "Value error, scale: inf is not a number above 0"),
        ({"scale": float("nan")}, "scale", "Value error, scale: nan is not a number above 0"),
        ({"scale": "mean"}, "scale", "Value error, scale: 'mean' is neither a number above 0 nor 'norm'"),
        ({"scale": True}, "scale", "Value error, scale: True is neither a number above 0 nor 'norm'"),
        ({"other": "zero"}, "other", "Input should be 'mean', 'half' or 'base'"),
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


ALL = "history: all weighs every model alike, and solves in closed form"
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
        ({"history": "all", "alpha": 0.5, "lr": 1e-3},
         f"Value error, 'alpha' has no effect: {ALL}; 'lr' has no effect: {ALL}"),
        ({"history": "all", "solver": "adam"},
         "Value error, history: all has no published procedure to reproduce: it needs solver: exact"),
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
        ({"history": "all", "svd_epsilon": 0.9}, {"alpha", "lr", "num_steps", "mgda", "ema", "ema_beta"}),
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


@pytest.mark.parametrize("method", BUILTIN)
def test_every_parameter_says_what_it_is(method: str) -> None:
    parameters = BUILTIN[method].parameters
    assert [name for name, field in parameters.model_fields.items() if not field.description] == []
    assert parameters.per_model <= set(parameters.names())


# A name that Python keeps for itself


def test_lambda_is_lambda_everywhere_outside() -> None:
    parameters = TaskArithmeticParameters.model_validate({"lambda": 0.3})
    assert parameters.lambda_ == 0.3
    assert parameters.names() == ["weight", "lambda", "normalize"]
    assert parameters.given() == {"lambda": 0.3}
    assert parameters.in_force() == {"weight": 1.0, "lambda": 0.3, "normalize": False}
    assert TaskArithmeticParameters.model_validate(parameters.in_force()).lambda_ == 0.3
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        TaskArithmeticParameters.model_validate({"lambda_": 0.3})


def test_a_recipe_with_lambda_comes_back() -> None:
    text = "base_model: ./base\nmerge_method: task_arithmetic\nparameters: {lambda: 0.3}\nmodels:\n"
    text += "- ./a\n- {model: ./b, parameters: {weight: 0.5}}\n"
    recipe = dopkit.parse_recipe(text, folder=Path("x"))
    assert [recipe.parameters_for(index).in_force() for index in (0, 1)] == [
        {"weight": 1.0, "lambda": 0.3, "normalize": False},
        {"weight": 0.5, "lambda": 0.3, "normalize": False},
    ]
    assert recipe.to_data(Path("x"))["parameters"] == {"weight": 1.0, "lambda": 0.3, "normalize": False}
    again = dopkit.parse_recipe(recipe.to_yaml(Path("x")), folder=Path("x"))
    assert [again.parameters_for(index) for index in (0, 1)] == [recipe.parameters_for(index) for index in (0, 1)]


@pytest.mark.parametrize(
    ("method", "parameters", "own", "message"),
    [
        ("task_arithmetic", "lamda: 1", "weight: 1", "unknown parameter 'lamda' (did you mean 'lambda'?)"),
        ("task_arithmetic", "lambda: x", "weight: 1", "lambda: 'x' should be a number"),
        ("task_arithmetic", "", "lambda: 1",
         "'lambda' cannot be set per model with task_arithmetic; set it under the recipe's own 'parameters'"),
        ("della", "density: 0.9", "",
         "chances from 0.75 to 1.05: density - epsilon must be above 0, density + epsilon at most 1"),
        ("nuslerp", "{weight: 1, nuslerp_row_wise: true}", "weight: 1",
         "'nuslerp_row_wise' has no effect: with nuslerp_flatten a tensor is one vector; remove it"),
        ("ties", "density: -0.1", "density: 0.5", "density: -0.1 should be greater than or equal to 0"),
        ("magmax", "lambda: 0", "", "lambda: 0 should be greater than 0"),
        ("opcm", "alpha: 2", "", "alpha: 2 should be less than or equal to 1"),
        ("dop", "{history: all, alpha: 0.5}", "", f"'alpha' has no effect: {ALL}; remove it"),
        ("dop", "{history: all, solver: adam}", "",
         "history: all has no published procedure to reproduce: it needs solver: exact"),
        ("dop", "history: all", "alpha: 0.5", f"'alpha' has no effect: {ALL}; remove it"),
        ("wudi", "scale: -1", "", "scale: -1 is not a number above 0"),
        ("nullspace", "svd_epsilon: 0", "", "svd_epsilon: 0 should be greater than 0"),
    ],
)  # fmt: skip
def test_a_recipe_is_told_what_is_wrong(method: str, parameters: str, own: str, message: str) -> None:
    braces = parameters if parameters.startswith("{") else f"{{{parameters}}}"
    text = f"base_model: ./base\nmerge_method: {method}\nparameters: {braces}\nmodels:\n- ./a\n"
    text += f"- {{model: ./b, parameters: {{{own}}}}}\n"
    with pytest.raises(DopkitError) as caught:
        dopkit.parse_recipe(text, folder=Path("x"))
    assert [problem.what for problem in caught.value.problems] == [message]
