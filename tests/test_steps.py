"""The models of earlier steps, carried along when a merged model grows."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny

import dopkit
from dopkit import steps
from dopkit.adding import add
from dopkit.preparing import Options

MakeRecipe = Callable[..., dopkit.Recipe]

MODEL = ("config.json", "model.safetensors", "tokenizer.json", "1_Pooling/config.json")
NOT_OF_IT = (
    "README.md", "dopkit_receipt.json", "dopkit_recipe.yaml", "dopkit_state.json", "dopkit_evaluation.json",
    "report.html", "heads/a.safetensors", "state/model.safetensors", "steps/01/model.safetensors",
    "stages/math/model.safetensors", ".git/objects/ab/cd", ".gitattributes",
)  # fmt: skip


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    folder = tmp_path / "merged"
    for name in (*MODEL, *NOT_OF_IT):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def test_saved_steps_are_listed_in_order(tmp_path: Path) -> None:
    assert steps.saved(tmp_path) == []
    for name in ("02", "10", "01", "notes", "-3"):
        (tmp_path / "steps" / name).mkdir(parents=True)
    (tmp_path / "steps" / "04").write_text("a file")
    assert steps.saved(tmp_path) == [1, 2, 10]


def test_a_step_is_the_model_alone(merged: Path, tmp_path: Path) -> None:
    steps.carry_over(merged, tmp_path / "new", 2)
    assert names(tmp_path / "new") == {f"steps/02/{name}" for name in MODEL} | {"steps/01/model.safetensors"}
    assert names(merged) == {*MODEL, *NOT_OF_IT}


def test_no_bytes_are_copied_where_links_work(merged: Path, tmp_path: Path) -> None:
    """Also from a download cache, whose files are links to their content."""
    blob = tmp_path / "blob"
    (merged / "model.safetensors").rename(blob)
    (merged / "model.safetensors").symlink_to(blob)
    steps.carry_over(merged, tmp_path / "new", 2)
    carried = tmp_path / "new" / "steps" / "02" / "model.safetensors"
    assert not carried.is_symlink() and os.path.samefile(carried, blob)


def test_another_disk_gets_copies(merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    steps.carry_over(merged, tmp_path / "new", 2)
    shutil.rmtree(merged)
    assert (tmp_path / "new" / "steps" / "02" / "model.safetensors").read_text() == "model.safetensors"


def test_a_copy_that_broke_off_is_made_again(merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill in the middle of a copy must not leave half a file that counts as there."""
    copy = shutil.copyfile

    def refuse(*_: object) -> None:
        raise OSError

    def broken(source: Path, target: Path) -> None:
        Path(target).write_text(Path(source).read_text()[:3])
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(shutil, "copyfile", broken)
    with pytest.raises(KeyboardInterrupt):
        steps.carry_over(merged, tmp_path / "new", 2)
    monkeypatch.setattr(shutil, "copyfile", copy)
    steps.carry_over(merged, tmp_path / "new", 2)
    for name in MODEL:
        assert (tmp_path / "new" / "steps" / "02" / name).read_text() == name
    assert not list((tmp_path / "new").rglob("*.new"))


def test_what_is_there_stays(merged: Path, tmp_path: Path) -> None:
    there = tmp_path / "new" / "steps" / "02" / "config.json"
    there.parent.mkdir(parents=True)
    there.write_text("already")
    steps.carry_over(merged, tmp_path / "new", 2)
    assert there.read_text() == "already"


def test_steps_from_now_on(vit: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    """Asked for at the second addition only: what the model was then is the first step that is kept."""
    merged = dopkit.run(make_recipe(vit, ["e0", "e1"]), tmp_path / "merged").folder
    before = tiny.weights(merged)
    add(merged, [str(vit / "e2")], options=Options(save_steps=True))
    assert steps.saved(merged) == [2]
    assert tiny.weights(merged / "steps" / "02") == before


def test_two_at_once_leave_a_step_between(vit: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    whole = dopkit.run(make_recipe(vit, ["e0", "e1", "e2"]), tmp_path / "whole", Options(save_steps=True)).folder
    grown = dopkit.run(make_recipe(vit, ["e0"]), tmp_path / "grown").folder
    add(grown, [str(vit / "e1"), str(vit / "e2")], options=Options(save_steps=True))
    assert steps.saved(grown) == [1, 2]
    for step in ("01", "02"):
        assert tiny.weights(grown / "steps" / step) == tiny.weights(whole / "steps" / step)
