"""Unit tests for dopkit.recipe: a frozen recipe, its order, its references, and its way back to YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from dopkit import methods, refs
from dopkit.recipe import Recipe
from dopkit.recipe.reading import parse_recipe

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FULL = """\
merge_method: dop
base_model: user/base@v1
models:
- ./one
- ../two
- model: user/three
  parameters:
    alpha: 0.7
parameters:
  solver: adam
  lr: 1e-05
  exclude: ["1e5", "head.*"]
dtype: float32
out_dtype: bfloat16
heads: base
copy: embeddings.*
"""


def recipe(text: str = FULL, folder: str = "/data/recipes") -> Recipe:
    return parse_recipe(text, name="mine", folder=folder)


def models(recipe: Recipe) -> list[str]:
    return [str(entry.model) for entry in recipe.models]


def shuffled(count: int, seed: int | None = None) -> Recipe:
    names = "".join(f"- u/{index}\n" for index in range(count))
    given = "" if seed is None else f"seed: {seed}\n"
    return recipe(f"base_model: u/base\nmerge_method: dop\norder: shuffle\n{given}models:\n{names}")


def test_the_fields_are_those_of_the_file() -> None:
    found = recipe()
    assert (found.name, found.merge_method, str(found.base_model)) == ("mine", "dop", "user/base@v1")
    assert models(found) == ["./one", "../two", "user/three"]
    assert [entry.model.folder for entry in found.models] == [Path("/data/recipes/one"), Path("/data/two"), None]
    assert [entry.parameters for entry in found.models] == [{}, {}, {"alpha": 0.7}]
    assert (found.dtype, found.out_dtype, found.heads, found.order, found.seed) == (
        "float32",
        "bfloat16",
        "base",
        "given",
        None,
    )
    assert found.copied == ("embeddings.*",)
    assert found.method is methods.BUILTIN["dop"]
    with pytest.raises(ValidationError, match="Instance is frozen"):
        found.seed = 1  # type: ignore[misc]


# Parameters


def test_a_models_own_parameters_stand_over_the_recipes() -> None:
    found = recipe()
    assert found.parameters.model_dump()["lr"] == 1e-5
    assert [found.parameters_for(index).model_dump()["alpha"] for index in range(3)] == [0.8, 0.8, 0.7]
    assert [found.parameters_for(index).model_dump()["lr"] for index in range(3)] == [1e-5] * 3
    assert found.parameters_for(0) is found.parameters


# References


def test_the_donor_is_the_base_or_the_first_model() -> None:
    assert str(recipe().donor) == "user/base@v1"
    assert str(recipe("merge_method: average\nmodels: [u/a, u/b]").donor) == "u/a"


def test_refs_are_each_once_and_the_base_first() -> None:
    assert [str(ref) for ref in recipe().refs] == ["user/base@v1", "./one", "../two", "user/three"]
    assert [str(ref) for ref in recipe("merge_method: average\nmodels: [u/a, u/b]").refs] == ["u/a", "u/b"]
    assert [str(ref) for ref in recipe("base_model: ./b/\nmerge_method: dop\nmodels: [./a, ./b]").refs] == [
        "./b/",
        "./a",
    ]


def test_pinning_replaces_every_spelling() -> None:
    found = recipe(
        "base_model: u/b\nmerge_method: dop\nmodels:\n- u/a\n- model: u/b@main\n  parameters: {alpha: 0.5}\n"
    )
    (base, model) = found.refs
    pinned = found.with_refs({base: base.at(COMMIT)})
    assert str(pinned.base_model) == f"u/b@{COMMIT}"
    assert models(pinned) == ["u/a", f"u/b@{COMMIT}"]
    assert pinned.models[1].parameters == {"alpha": 0.5}
    assert models(found) == ["u/a", "u/b@main"]
    assert model == refs.parse("u/a", Path())


# Order


def test_the_drawn_order_is_a_permutation_that_stays() -> None:
    drawn = shuffled(6, seed=3).drawn()
    assert models(drawn) == ["u/0", "u/2", "u/3", "u/5", "u/4", "u/1"]
    assert (drawn.order, drawn.seed) == ("given", None)
    assert drawn.drawn() is drawn
    assert models(shuffled(6, seed=3)) == [f"u/{index}" for index in range(6)]


def test_seeds_differ_and_none_is_zero() -> None:
    orders = {tuple(models(shuffled(6, seed).drawn())) for seed in range(20)}
    assert len(orders) > 15
    assert all(sorted(order) == [f"u/{index}" for index in range(6)] for order in orders)
    assert models(shuffled(6).drawn()) == models(shuffled(6, seed=0).drawn())
    assert recipe().drawn() == recipe()


# Back to YAML


@pytest.mark.parametrize(
    "text",
    [
        FULL,
        "merge_method: average\nmodels: [u/a]",
        "base_model: u/b\nmerge_method: dop\nmodels: [u/a, u/c]\norder: shuffle\nseed: 5",
        "base_model: u/b\nmerge_method: dop\nmodels: [u/a, {model: u/c, parameters: {alpha: by-count}}]\nheads: drop",
        "base_model: .\nmerge_method: dop\nmodels: [.., ~/m, 'u/x@1e5']\nparameters: {svd_epsilon: 1, exclude: [a, b]}",
    ],
)
def test_a_recipe_written_and_read_again_is_the_same_recipe(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    first = recipe(text)
    written = first.to_yaml(Path("/data/recipes"))
    again = recipe(written)
    assert again.to_yaml(Path("/data/recipes")) == written
    assert [ref.key for ref in again.refs] == [ref.key for ref in first.refs]
    ignoring_spelling: dict[str, Any] = {"base_model": first.base_model, "models": first.models}
    assert again.model_copy(update=ignoring_spelling) == first
    assert [again.parameters_for(index) for index in range(len(again.models))] == [
        first.parameters_for(index) for index in range(len(first.models))
    ]


def test_yaml_holds_what_is_in_force() -> None:
    assert recipe().to_yaml(Path("/data/out")).splitlines() == [
        "merge_method: dop",
        "base_model: user/base@v1",
        "models:",
        "- ../recipes/one",
        "- ../two",
        "- model: user/three",
        "  parameters:",
        "    alpha: 0.7",
        "parameters:",
        "  solver: adam",
        "  history: last",
        "  alpha: 0.8",
        "  svd_epsilon: 0.99999",
        "  svd_proj_space: uv",
        "  rank_rule: at-least",
        "  scale: 1.0",
        "  other: mean",
        "  exclude:",
        "  - '1e5'",
        "  - head.*",
        "  lr: 1.0e-05",
        "  num_steps: 200",
        "  mgda: true",
        "  ema: true",
        "  ema_beta: 0.999",
        "dtype: float32",
        "out_dtype: bfloat16",
        "heads: base",
        "copy:",
        "- embeddings.*",
    ]


def test_a_drawn_recipe_can_be_written_and_read() -> None:
    drawn = shuffled(4, seed=1).drawn()
    again = recipe(drawn.to_yaml(Path("/data/recipes")))
    assert models(again) == models(drawn)
    assert again == drawn
