"""What a method asks of a recipe: how many models, which parameters, a seed; each with its line."""

from __future__ import annotations

import pytest

import dopkit
from dopkit.errors import RecipeError

TWO = "models:\n- u/a\n- u/b\n"


def problems(text: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        dopkit.parse_recipe(text)
    return [f"{problem.place}: {problem.what}" for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("method", "models", "message"),
    [
        ("slerp", "- u/a\n- u/c", "slerp takes exactly 1 model beside the base, not 2"),
        ("nearswap", "- u/a\n- u/b\n- u/c", "nearswap takes exactly 1 model beside the base, not 2"),
        ("slerp", "- u/b", "slerp takes exactly 1 model beside the base, not 0"),
        ("model_stock", "- u/b\n- u/a", "model_stock needs at least 2 models beside the base"),
        ("nuslerp", "- u/a\n- u/b", "nuslerp takes exactly 2 models, not 1"),  # the base is a third one
        ("passthrough", "- u/a\n- u/c", "passthrough takes exactly 1 model, not 2"),
        ("karcher", "- u/a", "karcher needs at least 2 models"),
    ],
)
def test_too_few_models_and_too_many(method: str, models: str, message: str) -> None:
    given = {"slerp": "parameters: {t: 0.5}\n", "nearswap": "parameters: {t: 0.5}\n",
             "nuslerp": "parameters: {weight: 1}\n"}.get(method, "")  # fmt: skip
    assert problems(f"merge_method: {method}\nbase_model: u/b\n{given}models:\n{models}\n") == [
        f"line {4 if given else 3}: {message}"
    ]


def test_a_model_that_cannot_be_read_is_not_one_too_few() -> None:
    (problem,) = problems("merge_method: karcher\nmodels:\n- u/a\n- '???'\n")
    assert problem.startswith("line 4: '???' is neither a Hub repository")


@pytest.mark.parametrize("method", ["slerp", "ties", "dare_ties", "nearswap", "arcee_fusion", "task_arithmetic"])
def test_a_base_among_the_models_is_no_model(method: str) -> None:
    """As mergekit's recipes have it; what is written back does without."""
    given = "parameters: {t: 0.5}\n" if method in ("slerp", "nearswap") else ""
    recipe = dopkit.parse_recipe(f"merge_method: {method}\nbase_model: u/b\n{given}{TWO}")
    assert [str(entry.model) for entry in recipe.models] == ["u/a"]
    assert len(dopkit.parse_recipe(f"merge_method: average\nbase_model: u/b\n{TWO}").models) == 2


@pytest.mark.parametrize("method", ["linear", "nuslerp", "multislerp"])
def test_a_weight_that_every_model_needs(method: str) -> None:
    what = f"'weight' is missing: {method} needs one for every model, here or for all of them"
    assert problems(f"merge_method: {method}\n{TWO}") == [f"line 3: {what}", f"line 4: {what}"]
    one = "models:\n- {model: u/a, parameters: {weight: 1}}\n- u/b\n"
    assert problems(f"merge_method: {method}\n{one}") == [f"line 4: {what}"]
    recipe = dopkit.parse_recipe(f"merge_method: {method}\nparameters: {{weight: 2}}\n{one}")
    assert [recipe.parameters_for(index).in_force()["weight"] for index in (0, 1)] == [1, 2]
    whole = "models:\n- {model: u/a, parameters: {weight: 1}}\n- {model: u/b, parameters: {weight: 2}}\n"
    recipe = dopkit.parse_recipe(f"merge_method: {method}\n{whole}")
    assert "\n  weight:" not in recipe.to_yaml(dopkit.recipe.Path()).partition("\nparameters:")[2]
    assert dopkit.parse_recipe(recipe.to_yaml(dopkit.recipe.Path()), name=recipe.name) == recipe.model_copy(
        update={"parameters": recipe.parameters.model_validate(recipe.parameters.in_force())}
    )


@pytest.mark.parametrize("method", ["slerp", "nearswap"])
def test_a_parameter_without_a_default(method: str) -> None:
    what = f"the parameter 't' is missing: {method} needs it"
    text = f"base_model: u/b\nmerge_method: {method}\nmodels: [u/a]\n"
    assert problems(text) == [f"line 2: {what}"]
    assert problems(text + "parameters:\n") == [f"line 4: {what}"]
    assert problems(text + "parameters: {}\n") == [f"line 4: {what}"]
    assert problems(text + "parameters: {t: x}\n") == ["line 4: t: 'x' should be a number"]


def test_a_seed_for_a_method_that_draws() -> None:
    text = f"merge_method: dare_linear\nbase_model: u/x\nseed: 5\n{TWO}"
    assert dopkit.parse_recipe(text).seed == 5
    assert problems(text.replace("dare_linear", "ties")) == ["line 3: 'seed' has no effect without `order: shuffle`"]
