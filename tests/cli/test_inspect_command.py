"""``dopkit inspect`` as a user meets it, and its tables for models larger than a test can make."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
from click.testing import CliRunner, Result

from dopkit.cli import main
from dopkit.cli.relations import describe, sentences
from dopkit.places import place_of
from dopkit.relations import Products, Relations, TensorRelations
from dopkit.roles import Role


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["inspect", *arguments])


@pytest.fixture
def recipe(llama: Path, tmp_path: Path) -> str:
    path = tmp_path / "trio.yaml"
    path.write_text(f"base_model: {llama}/base\nmerge_method: dop\nmodels: [{llama}/e0, {llama}/e1, {llama}/e2]\n")
    return str(path)


def test_the_tables(recipe: str) -> None:
    result = invoke(recipe)
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines() == ["reading headers", "comparing"]
    lines = result.stdout.splitlines()
    cells = [line.split() for line in lines]
    assert lines[0].startswith("task vectors of 3 models over 21 tensors; norm of the base ")
    assert ["model", "norm", "of", "base", "rank"] in cells
    assert [row[:2] for row in cells if row and row[0] in ("1", "2", "3")] == [
        ["1", "e0"], ["2", "e1"], ["3", "e2"],  # the models
        ["2", "e1"], ["3", "e2"],  # their cosines
        ["1", "9"],  # layer 1 and its tensors
    ]  # fmt: skip
    parts = ["q", "k", "v", "o", "mlp gate", "mlp up", "mlp down", "embedding", "head", "other"]
    start = next(number for number, line in enumerate(lines) if line.startswith("part "))
    assert [line.split("  ")[0] for line in lines[start + 1 : start + 1 + len(parts)]] == parts
    assert "The task vectors are nearly orthogonal (cosines " in result.stdout
    assert max(map(len, lines)) <= 80


def test_every_layer(recipe: str) -> None:
    cells = [line.split() for line in invoke(recipe, "--layers", "-q").stdout.splitlines()]
    start = next(number for number, row in enumerate(cells) if row[:2] == ["layer", "part"])
    table = cells[start + 1 : start + 1 + 3 + 2 * 8]
    assert [row[:2] for row in table[:4]] == [["outside", "embedding"], ["outside", "head"], ["outside", "other"],
                                              ["0", "q"]]  # fmt: skip
    assert [row[0] for row in table[3:]] == ["0"] * 8 + ["1"] * 8


def test_json_is_the_shared_format(recipe: str) -> None:
    data = json.loads(invoke(recipe, "--json", "--energy", "0.5").stdout)
    assert list(data) == ["models", "energy", "norms", "base_norm", "cosines", "tensors"]
    assert data["models"] == ["e0", "e1", "e2"]
    assert data["energy"] == 0.5
    query = data["tensors"]["model.layers.0.self_attn.q_proj.weight"]
    assert len(query["norms"]) == len(query["cosines"]) == len(query["ranks"]) == 3
    assert data["tensors"]["model.norm.weight"]["ranks"] is None
    without = json.loads(invoke(recipe, "--json", "--no-ranks").stdout)
    assert {tensor["ranks"] for tensor in without["tensors"].values()} == {None}
    assert without["cosines"] == data["cosines"]


def test_without_ranks_there_is_no_column_of_them(recipe: str) -> None:
    result = invoke(recipe, "--no-ranks", "--quiet")
    assert "rank" not in result.stdout
    assert result.stderr == ""


def test_refusals(recipe: str, llama: Path, tmp_path: Path) -> None:
    baseless = tmp_path / "baseless.yaml"
    baseless.write_text(f"merge_method: average\nmodels: [{llama}/e0, {llama}/e1]\n")
    result = invoke(str(baseless))
    assert result.exit_code == 1
    assert "names no base_model" in result.stderr
    assert json.loads(invoke(str(baseless), "--json").stdout)["error"] == "cannot inspect the recipe"
    assert invoke(recipe, "--energy", "0").exit_code == 2


def test_one_model_and_one_that_is_the_base(llama: Path, tmp_path: Path) -> None:
    for name, source in (("base", "base"), ("same", "base"), ("e0", "e0"), ("twin", "e0")):
        tiny.edit(llama / source, tmp_path / name, dict)
    alone = tmp_path / "alone.yaml"
    alone.write_text("base_model: ./base\nmerge_method: average\nmodels: [./e0]\n")
    result = invoke(str(alone), "-q")
    assert result.exit_code == 0, result.output
    assert "cosine" not in result.stdout
    equal = tmp_path / "equal.yaml"
    equal.write_text("base_model: ./base\nmerge_method: average\nmodels: [./same, ./e0, ./twin]\n")
    lines = invoke(str(equal), "-q").stdout.splitlines()
    assert lines[-2:] == [
        "same equals the base in every tensor that is merged.",
        "e0 and twin are nearly one model (cosine 1.0000).",
    ]
    assert "nan" not in "\n".join(lines).lower()


def large(layers: int, models: int, cosine: float = 0.0) -> Relations:
    """A language model of so many layers, listed as an index does: 1, 10, 11, 2 ..."""
    inner = [[1.0 if i == j else cosine for j in range(models)] for i in range(models)]
    tensors = [
        TensorRelations(name, place_of(name, Role.LINEAR), (64, 64), Products(inner, 1e4), [32] * models)
        for layer in sorted(range(layers), key=str)
        for part in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
        for name in [f"model.layers.{layer}.{part}.weight"]
    ]
    names = tuple(f"clip-vit-base-patch32_with-a-long-name-{number}" for number in range(models))
    return Relations(names, tuple(tensors), 0.9)


@pytest.mark.parametrize("width", [80, 120])
def test_a_large_model_fits_the_terminal(width: int) -> None:
    text = describe(large(layers=32, models=20), every_layer=False, width=width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    start = next(number for number, line in enumerate(lines) if line.startswith("layer "))
    bands = [line.split()[0] for line in lines[start + 1 : start + 12]]
    assert bands == ["0-2", "3-5", "6-8", "9-11", "12-14", "15-17", "18-20", "21-23", "24-26", "27-29", "30-31"]
    assert lines[start + 12] == ""
    every = describe(large(layers=32, models=3), every_layer=True, width=width).splitlines()
    start = next(number for number, line in enumerate(every) if line.startswith("layer "))
    assert [line.split()[0] for line in every[start + 1 : start + 129 : 4]] == [str(layer) for layer in range(32)]


def test_two_stacks_are_told_apart() -> None:
    names = ["vision_model.encoder.layers.0.mlp.fc1.weight", "text_model.encoder.layers.0.mlp.fc1.weight"]
    products = Products([[1.0]], 4.0)
    tensors = tuple(TensorRelations(name, place_of(name, Role.LINEAR), (2, 2), products) for name in names)
    text = describe(Relations(("one",), tensors, None), every_layer=False, width=80)
    assert "\nvision_model 0 " in text
    assert "\ntext_model 0 " in text


@pytest.mark.parametrize(
    ("inner", "said"),
    [
        ([[1.0, 0.02], [0.02, 1.0]], ["The task vectors are nearly orthogonal (cosine 0.020): "]),
        ([[1.0, 0.4], [0.4, 1.0]], ["The task vectors partly agree (cosine 0.40): "]),
        ([[1.0, -0.4], [-0.4, 1.0]], ["The task vectors partly oppose each other (cosine -0.40): "]),
        ([[1.0, 0.999], [0.999, 1.0]], ["a and b are nearly one model (cosine 0.9990)."]),
        ([[9.0, 0.0], [0.0, 1.0]], ["The task vectors are nearly orthogonal (cosine 0.000): ",
                                    "a moved 3.0 times as far from the base as b."]),
        ([[0.0, 0.0], [0.0, 1.0]], ["a equals the base in every tensor that is merged."]),
    ],
)  # fmt: skip
def test_what_it_means(inner: list[list[float]], said: list[str]) -> None:
    name = "layers.0.mlp.fc1.weight"
    tensor = TensorRelations(name, place_of(name, Role.LINEAR), (2, 2), Products(inner, 4.0))
    found = list(sentences(Relations(("a", "b"), (tensor,), None)))
    assert len(found) == len(said)
    assert all(one.startswith(expected) for one, expected in zip(found, said, strict=True))
