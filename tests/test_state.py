"""What a merged model carries so that it can grow: written, read back, and not believed when it is damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

import dopkit
from dopkit import state
from dopkit.adding import add, plan_addition
from dopkit.errors import CheckpointError, DopkitError, MergeError, OutputError
from dopkit.preparing import Options

MakeRecipe = Callable[..., dopkit.Recipe]
ONE = {"model": "org/e0", "identity": "a", "bytes": 4}
GOOD: dict[str, Any] = {"layout": 1, "base": ONE, "models": [ONE]}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    made = state.parse(json.dumps(GOOD | {"scale": 1.5, "norms": [2.0], "kept": ["state/a.safetensors"]}), "it")
    state.write(tmp_path, made)
    assert state.parse((tmp_path / state.STATE_FILE).read_text(), "it") == made
    assert [path.name for path in tmp_path.iterdir()] == [state.STATE_FILE]


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"layout": 2}, "layout"),
        ({"base": {"model": "org/base"}}, "base.identity"),
        ({"models": []}, "models"),
        ({"models": [ONE | {"bytes": -1}]}, "models.0.bytes"),
        ({"models": [ONE | {"bytes": "4"}]}, "models.0.bytes"),
        ({"scale": 0}, "scale"),
        ({"scale": True}, "scale"),
        ({"norms": [1e400]}, "norms.0"),
        ({"kept": ["../../etc/passwd"]}, "kept.0"),
        ({"kept": ["state/../model.safetensors"]}, "kept.0"),
        ({"kept": ["state/"]}, "kept.0"),
        ({"inexact": 1}, "inexact"),
    ],
)
def test_a_damaged_one_says_where(change: dict[str, Any], where: str) -> None:
    with pytest.raises(OutputError, match=rf"^it is damaged: {where} is missing or not what it should be$"):
        state.parse(json.dumps(GOOD | change), "it")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"layout": 1}', "\0", "null"])
def test_no_state_at_all(text: str) -> None:
    with pytest.raises(OutputError, match="it is damaged"):
        state.parse(text, "it")


# Beside a model


@pytest.fixture
def kept(vit: Path, tmp_path: Path, make_recipe: MakeRecipe) -> Path:
    """Two models merged by sums, which are kept in two files or more."""
    recipe = make_recipe(vit, ["e0", "e1"], "dop", parameters={"history": "all"})
    options = Options(keep_state=True, max_shard_size=40_000)
    return dopkit.run(recipe, tmp_path / "kept", options).folder


def refusal(error: type[DopkitError], merged: Path, expert: Path) -> str:
    before = tiny.weights(merged)
    with pytest.raises(error) as caught:
        add(merged, [str(expert)])
    assert tiny.weights(merged) == before
    return str(caught.value)


def test_it_names_what_went_in_and_where_the_tensors_are(vit: Path, kept: Path) -> None:
    data = json.loads((kept / state.STATE_FILE).read_text())
    assert [one["model"] for one in (data["base"], *data["models"])] == ["base", "e0", "e1"]
    assert sorted(data["kept"]) == sorted(f"state/{path.name}" for path in (kept / "state").iterdir())
    assert len(data["kept"]) > 2 and "state/model.safetensors.index.json" in data["kept"]
    assert str(vit) not in json.dumps(data)  # it may be published: no path of this machine
    assert (data["scale"], data["norms"], data["inexact"]) == (1.0, [], None)


def test_a_state_that_is_gone(vit: Path, kept: Path) -> None:
    shutil.rmtree(kept / "state")
    said = refusal(CheckpointError, kept, vit / "e2")
    assert "kept/state: there is no such folder" in said and "--from-experts" in said
    assert not kept.with_name("kept.partial").exists()
    with pytest.raises(CheckpointError, match="no such folder"):
        plan_addition(kept, [str(vit / "e2")])
    add(kept, [str(vit / "e2")], from_experts=True)


def test_a_state_of_something_else(vit: Path, kept: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    dopkit.run(make_recipe(vit, ["e0"], "average"), tmp_path / "other", Options(keep_state=True))
    shutil.rmtree(kept / "state")
    shutil.copytree(tmp_path / "other" / "state", kept / "state")
    said = refusal(CheckpointError, kept, vit / "e2")
    assert "kept/state is not the state of this merge" in said and "tensors missing, or of another shape" in said
    assert not kept.with_name("kept.partial").exists()


def test_a_state_with_nan_is_named(vit: Path, kept: Path) -> None:
    file = next(path for path in sorted((kept / "state").glob("*.safetensors")) if path.stat().st_size > 20_000)
    tensors = load_file(file)
    name = next(name for name in tensors if tensors[name].is_floating_point() and tensors[name].ndim == 2)
    tensors[name][-1, -1] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})
    said = refusal(MergeError, kept, vit / "e2")
    assert f"kept/state: {name} holds 1 value that are NaN or infinite" in said


def test_norms_that_are_missing(vit: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    merged = dopkit.run(make_recipe(vit, ["e0", "e1"], parameters={"scale": "norm"}), tmp_path / "merged").folder
    path = merged / state.STATE_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"norms": [1.0]}))
    assert "it tells the norms of 1 task vectors, and the scale needs those of 2" in refusal(
        OutputError, merged, vit / "e2"
    )


def test_a_plan_tells_what_it_goes_on_from(vit: Path, kept: Path, tmp_path: Path) -> None:
    before = sorted(path for path in tmp_path.rglob("*"))
    made = plan_addition(kept, [str(vit / "e2")])
    assert made.continues is not None and made.continues.kept and made.continues.inexact is None
    assert [source.ref.name for source in made.merged_models] == ["e0", "e1", "e2"]
    shutil.rmtree(kept / "state")
    data = json.loads((kept / state.STATE_FILE).read_text())
    (kept / state.STATE_FILE).write_text(json.dumps(data | {"kept": []}))
    made = plan_addition(kept, [str(vit / "e2")])
    assert made.continues is not None and not made.continues.kept
    assert "the sums over the earlier models were not kept" in str(made.continues.inexact)
    assert [path for path in before if path.exists()] == sorted(path for path in tmp_path.rglob("*"))


def test_a_state_that_is_not_kept_on_is_told(vit: Path, kept: Path) -> None:
    told: list[str] = []

    class Listener(dopkit.Progress):
        def note(self, text: str) -> None:
            told.append(text)

    add(kept, [str(vit / "e2")], progress=Listener())
    assert any("is read, but not kept on" in note for note in told)
    assert not (kept / "state").exists()
    assert json.loads((kept / state.STATE_FILE).read_text())["kept"] == []
