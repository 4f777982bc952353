"""What of a mergekit recipe has no effect, and what is told of the differences."""

from __future__ import annotations

import pytest

from dopkit.errors import RecipeError
from dopkit.recipe.dialect import differences, is_mergekits
from dopkit.recipe.reading import parse_recipe

DARE = "merge_method: dare_ties\nbase_model: u/base\nmodels:\n- {model: u/a, parameters: {density: 0.5}}\n- u/b\n"


def test_parameters_without_effect_are_left_out_and_told() -> None:
    text = DARE.replace("dare_ties", "task_arithmetic")
    recipe = parse_recipe(text + "parameters: {int8_mask: true, weight: 0.5}\n")
    assert recipe.notes == (
        "'density' is left out: it trims nothing", "'int8_mask' is left out: it only saves memory in mergekit",
    )  # fmt: skip
    assert recipe.parameters.given() == {"weight": 0.5} and recipe.models[0].parameters == {}
    assert list(differences(recipe)) == []


def test_a_seed_in_the_recipe() -> None:
    """mergekit reads it nowhere; who writes it means the draws of the method."""
    recipe = parse_recipe(DARE + "random_seed: 3\n")
    assert recipe.seed == 3 and "read as `seed`" in recipe.notes[0]
    recipe = parse_recipe("merge_method: average\nmodels: [u/a, u/b]\nrandom_seed: 3\n")
    assert recipe.seed is None and "left out" in recipe.notes[0]


def test_a_misspelt_parameter_is_told_as_such() -> None:
    models = "models:\n- {model: u/a, parameters: {weigth: 1}}\n- {model: u/b, parameters: {weight: 1}}\n"
    text = f"merge_method: linear\n{models}"
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text + "parameters: {normalise: true}\n")
    assert [str(problem).partition(" (")[0] for problem in caught.value.problems] == [
        "line 3: unknown parameter 'weigth' for a single model", "line 5: unknown parameter 'normalise'",
    ]  # fmt: skip


def test_where_nothing_differs_nothing_is_told() -> None:
    recipe = parse_recipe(DARE.replace("0.5", "1") + "parameters: {weight: 1}\n")
    assert is_mergekits(recipe) and list(differences(recipe)) == []


def test_every_kind_of_difference() -> None:
    recipe = parse_recipe(DARE + "dtype: bfloat16\nparameters: {weight: [{filter: '*mlp*', value: 1}, {value: 2}]}\n")
    told = " / ".join(differences(recipe))
    assert "rounded once at the end" in told and "another draw" in told and "these very characters" in told
    three = "merge_method: model_stock\nbase_model: u/base\nmodels: [u/a, u/b, u/c]\nparameters: {filter_wise: true}\n"
    assert "the base stays" in " / ".join(differences(parse_recipe(three)))
    fusion = "merge_method: arcee_fusion\nbase_model: u/a\nmodels: [u/a, u/b]\n"
    assert "mergekit writes float32" in " / ".join(differences(parse_recipe(fusion)))
    linear = "merge_method: linear\nmodels: [u/a, u/b]\nparameters: {weight: 1}\n"
    assert "come from the first model" in " / ".join(differences(parse_recipe(linear)))


@pytest.mark.parametrize(
    ("models", "told"),
    [
        ("models: [u/a, u/b]\n", True),
        ("models: [{model: u/a, parameters: {weight: 1}}, u/b]\n", True),
        ("models: [u/base, {model: u/a, parameters: {weight: 1}}]\n", False),
        ("models: [u/a, u/b]\nparameters: {weight: [0, 1]}\n", False),
        ("slices: [{sources: [u/base, u/a], parameters: {weight: 1}}, {sources: [u/base, u/a]}]\n", True),
        ("slices: [{sources: [u/base, {model: u/a, parameters: {weight: 1}}]}]\n", False),
    ],
)
def test_a_model_without_weight(models: str, told: bool) -> None:
    """mergekit 0.1.5: RuntimeError, missing required parameter weight."""
    recipe = parse_recipe(f"merge_method: ties\nbase_model: u/base\n{models}")
    assert told == any("wants one for each" in one for one in differences(recipe))


@pytest.mark.parametrize(("last", "told"), [("[u/a]", False), ("[u/a, u/b]", True)])
def test_a_last_slice_with_more_sources_than_the_first(last: str, told: bool) -> None:
    text = f"merge_method: linear\nparameters: {{weight: 1}}\nslices: [{{sources: [u/a]}}, {{sources: {last}}}]\n"
    assert told == any("the last norm and the head" in one for one in differences(parse_recipe(text)))


def test_a_recipe_that_mergekit_does_not_read() -> None:
    dop = "merge_method: dop\nbase_model: u/base\nmodels: [u/a, u/b]\n"
    assert not is_mergekits(parse_recipe(dop)) and not is_mergekits(parse_recipe(DARE + "copy: [x]\n"))
