"""Recipes with slices, modules, settings that vary and other methods for some tensors: read, refused, written again."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dopkit.errors import RecipeError
from dopkit.recipe import Recipe
from dopkit.recipe.reading import parse_recipe
from dopkit.recipe.settings import Place

DIALECT = yaml.safe_load((Path(__file__).parents[1] / "golden/mergekit/dialect.yaml").read_text())
SLERP = """\
slices:
  - sources:
      - {model: u/a, layer_range: [0, 4]}
      - {model: u/b, layer_range: [0, 4]}
merge_method: slerp
base_model: u/a
parameters:
  t:
    - {filter: self_attn, value: [0, 1]}
    - {value: 0.5}
"""
TIES = "merge_method: ties\nbase_model: u/base\nmodels: [u/a, u/b]\n"


def problems(text: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize("name", DIALECT)
def test_written_and_read_again_it_is_the_same(name: str, tmp_path: Path) -> None:
    recipe = parse_recipe(yaml.safe_dump(DIALECT[name]), folder=tmp_path)
    again = parse_recipe(recipe.to_yaml(tmp_path), folder=tmp_path)
    assert again.model_copy(update={"notes": ()}) == recipe.model_copy(update={"notes": ()})


def test_the_models_of_slices_are_named_once() -> None:
    recipe = parse_recipe(SLERP)
    assert [entry.model.repo for entry in recipe.models] == ["u/b"]  # slerp's first one is its base
    assert [source.layers for source in recipe.parts[0].sources()] == [(0, 4), (0, 4)]
    assert not recipe.settled


def level(recipe: Recipe, name: str, depth: float) -> float:
    value: float = recipe.parameters_at(Place((name,), depth)).model_dump()["t"]
    return value


def test_parameters_in_force_at_a_tensor() -> None:
    recipe = parse_recipe(SLERP)
    assert level(recipe, "layers.1.self_attn.q_proj.weight", 0.25) == 0.25
    assert level(recipe, "layers.1.mlp.up_proj.weight", 0.25) == 0.5


def test_the_narrowest_level_counts() -> None:
    recipe = parse_recipe(TIES + "parameters: {density: 0.5, weight: [1, 3]}\n")
    place = Place(("layers.1.weight",), 0.5)
    assert recipe.parameters_at(place).given() == {"density": 0.5, "weight": 2.0}
    levels = ({"weight": 7}, {"density": [{"filter": "mlp", "value": 0.1}]}, {"weight": [0, 1]})
    assert recipe.parameters_at(place, *levels).given() == {"density": 0.5, "weight": 0.5}


def test_other_methods_for_some_tensors() -> None:
    text = TIES + "methods:\n- {filter: '*norm*', merge_method: task_arithmetic, parameters: {lambda: [0, 1]}}\n"
    recipe = parse_recipe(text)
    place = Place(("layers.0.norm.weight",), 0.5)
    found = recipe.override_at(place)
    assert found is not None and found.method.name == "task_arithmetic"
    assert recipe.override_at(Place(("layers.0.mlp.weight",), 0.5)) is None
    assert recipe.parameters_at(place, {"weight": 2.0, "density": 0.5}).given() == {"lambda": 0.5, "weight": 2.0}
    assert parse_recipe(recipe.to_yaml(Path())) == recipe


def test_defaults_that_a_varying_parameter_takes_the_effect_from_are_not_written() -> None:
    text = "merge_method: dop\nbase_model: u/base\nmodels: [u/a, u/b]\n"
    varying = "parameters: {history: [{filter: mlp, value: all}, {value: last}]}\n"
    recipe = parse_recipe(text + varying)
    assert parse_recipe(recipe.to_yaml(Path())).varying == recipe.varying
    assert "alpha" not in recipe.to_data(Path())["parameters"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (SLERP + "models: [u/a]\n",
         ["line 1: 'slices' stands beside 'models': one of models, slices and modules says what is merged"]),
        (SLERP.replace("[0, 4]}\nmerge", "[0, 5]}\nmerge"), ["line 2: its sources have different numbers of layers"]),
        (SLERP.replace("layer_range: [0, 4]}\n      - {model: u/b, layer_range: [0, 4]", "layer_range: [4, 4]}\n"
                       "      - {model: u/b, layer_range: [4, 4]"),
         [f"line {line}: layer_range: [4, 4] holds no layers; it names the first and the one behind the last"
          for line in (3, 4)]),
        (SLERP.replace("layer_range: [0, 4]}\nmerge", "layer_range: [0, -1]}\nmerge"),
         ["line 2: its sources have different numbers of layers",
          "line 4: layer_range: [0, -1] holds no layers; it names the first and the one behind the last"]),
        (SLERP.replace("[0, 4]}\nmerge", "4}\nmerge"),
         ["line 2: its sources have different numbers of layers",
          "line 4: layer_range: two whole numbers, the first layer and the one behind the last: [0, 16]"]),
        (SLERP.replace("u/a,", "u/b,"), ["line 2: slerp takes exactly 1 model beside the base, not 2",
                                         "line 4: u/b is listed twice (first in line 3); each model is merged once"]),
        (SLERP + "order: shuffle\n",
         ["line 11: 'order' does not go with 'slices': a slice has its sources in the order in which they are written"]),  # noqa: E501
        (SLERP.replace("value: 0.5", "value: x"), ["line 8: t: 'x' should be a number"]),
        (SLERP.replace("value: [0, 1]", "value: [0, true]"), ["line 8: t: a list should be a number"]),
        (SLERP.replace("      - {model: u/b, layer_range: [0, 4]}\n", ""), ["line 2: slerp takes exactly 1 model beside the base, not 0"]),  # noqa: E501
        (SLERP.replace("merge_method", "residual_weight: 1\nmerge_method"),
         ["line 5: 'residual_weight' is a mergekit key that dopkit does not support: "
          "mergekit declares it and reads it nowhere"]),
        ("modules: {encoder: {}}\nmerge_method: passthrough\n", ["line 1: a module has either 'models' or 'slices'"]),
        ("slices: [{sources: [u/a], base_model: u/b}]\nmerge_method: passthrough\n",
         ["line 1: a slice has no base of its own; set the recipe's 'base_model'"]),
        ("merge_method: dop\nbase_model: u/base\nmodels: [u/a, u/b]\nparameters: {scale: [1, 2]}\n",
         ["line 4: scale is one for the whole model, so it has neither filters nor a gradient"]),
        (TIES + "methods: [{filter: a, merge_method: linear}]\n",
         ["line 3: 'weight' is missing: linear needs one for every model, here or for all of them"]),
        (TIES.replace("[u/a", "[u/base, u/a") + "methods: [{filter: a, merge_method: linear, parameters: {weight: 1}}]\n",  # noqa: E501
         ["line 4: the base stands among the models: one of ties and linear would merge it, one not"]),
        (TIES + "methods: [{filter: a, merge_method: arcee_fusion}]\n",
         ["line 4: arcee_fusion takes exactly 1 model beside the base, not 2"]),
        (TIES + "methods: [{filter: a, merge_method: dop, parameters: {scale: 2}}]\n",
         ["line 4: scale is one for the whole model; it has no place here"]),
    ],
)  # fmt: skip
def test_refused(text: str, said: list[str]) -> None:
    assert problems(text) == said


def test_what_is_one_for_the_whole_model_is_not_written_for_another_method() -> None:
    """The recipe that is written beside a merge reads back."""
    recipe = parse_recipe(TIES + "methods: [{filter: a, merge_method: dop, parameters: {alpha: 0.5}}]\n")
    again = parse_recipe(recipe.to_yaml(Path()))
    assert again.overrides[0].parameters.in_force() == recipe.overrides[0].parameters.in_force()
    assert "scale" not in recipe.overrides[0].to_data()["parameters"]
