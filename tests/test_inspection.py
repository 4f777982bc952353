"""Inspecting a recipe: what it needs, what it refuses, and that streamed models give the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny
from hubserver import TestHub, connect

import dopkit
from dopkit.engine import relating
from dopkit.errors import PlanError
from dopkit.inspection import inspect
from dopkit.measure import resident_bytes

MakeRecipe = Callable[..., dopkit.Recipe]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, llama: Path) -> Iterator[TestHub]:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with TestHub() as hub:
        connect(monkeypatch, hub, tmp_path / "cache")
        for name in ("base", "e0", "e1"):
            hub.create_repo(f"org/{name}", {})
            hub.add_folder(f"org/{name}", llama / name)
        yield hub
        assert hub.crashes == []


@pytest.mark.parametrize("method", ["dop", "average"])
@pytest.mark.parametrize("stream", [False, True])
def test_models_on_the_hub(
    hub: TestHub, tmp_path: Path, llama: Path, make_recipe: MakeRecipe, method: str, stream: bool
) -> None:
    recipe = dopkit.parse_recipe(f"base_model: org/base\nmerge_method: {method}\nmodels: [org/e0, org/e1]\n")
    found = inspect(recipe, dopkit.Options(stream=stream))
    assert found == inspect(make_recipe(llama, ["e0", "e1"], method))
    stored = list((tmp_path / "cache").rglob("*.safetensors"))
    assert stored == [] if stream else len(stored) >= 3


def test_a_recipe_without_a_base_is_refused(llama: Path, make_recipe: MakeRecipe) -> None:
    with pytest.raises(PlanError, match="names no base_model") as caught:
        inspect(make_recipe(llama, ["e0", "e1"], "average", base=None))
    assert "Add `base_model:" in str(caught.value)


def test_layers_of_some_models_are_refused(llama: Path) -> None:
    def piece(models: str, layer: int) -> str:
        sources = (f"{{model: ./{model}, layer_range: [{layer}, {layer + 1}]}}" for model in models.split())
        return f"  - sources: [{', '.join(sources)}]\n"

    head = "base_model: ./base\nmerge_method: linear\nparameters: {weight: 1}\nslices:\n"
    for first, second in (("e0 e1", "e1"), ("e0", "e1")):
        recipe = dopkit.parse_recipe(head + piece(first, 0) + piece(second, 1), folder=llama)
        with pytest.raises(PlanError, match="cannot inspect the recipe") as caught:
            inspect(recipe)
        assert "is not merged from all models" in str(caught.value)


def test_models_that_do_not_go_together_are_refused_all_at_once(
    llama: Path, vit: Path, tmp_path: Path, make_recipe: MakeRecipe
) -> None:
    tiny.edit(llama / "base", tmp_path / "base", dict)
    tiny.edit(vit / "e0", tmp_path / "other", dict)
    with pytest.raises(PlanError) as caught:
        inspect(make_recipe(tmp_path, ["other", "missing"]))
    assert "missing" in str(caught.value)
    with pytest.raises(PlanError, match="other"):
        inspect(make_recipe(tmp_path, ["other"]))


def test_nothing_is_written_and_no_output_is_in_the_way(
    llama: Path, tmp_path: Path, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "merged").write_text("a file where the recipe's folder would go")
    inspect(make_recipe(llama, ["e0", "e1"]))
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


def test_too_little_memory_is_told_beforehand(
    llama: Path, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(llama, ["e0", "e1"])
    with pytest.raises(
        PlanError, match=r"--no-ranks.* by the program itself\), 1 MB there\n    `--max-memory [\d.]+[MG]B` would do"
    ):
        inspect(recipe, dopkit.Options(max_memory=1_000_000))
    monkeypatch.setattr(relating, "OVERHEAD_BYTES", 0)
    monkeypatch.setattr(relating, "READ_AHEAD_BYTES", 1000)
    with pytest.raises(PlanError):  # the blocks alone
        inspect(recipe, dopkit.Options(max_memory=1_000_000), ranks=False)
    inspect(recipe, dopkit.Options(max_memory=resident_bytes() + 60_000_000), ranks=False)


@pytest.mark.parametrize("energy", [0.0, -1.0, 1.5, float("nan")])
def test_an_energy_that_is_no_share_is_refused(llama: Path, make_recipe: MakeRecipe, energy: float) -> None:
    with pytest.raises(PlanError, match="no share"):
        inspect(make_recipe(llama, ["e0"]), energy=energy)


def test_progress_is_told_all_of_the_effort(llama: Path, make_recipe: MakeRecipe) -> None:
    class Watching(dopkit.Progress):
        def __init__(self) -> None:
            self.stages: list[str] = []
            self.expected: tuple[int, int, float] = (0, 0, 0.0)
            self.done = [0, 0, 0.0]

        def stage(self, text: str) -> None:
            self.stages.append(text)

        def begin(self, tensors: int, nbytes: int, effort: float) -> None:
            self.expected = (tensors, nbytes, effort)

        def advance(self, nbytes: int, effort: float) -> None:
            self.done[1] += nbytes
            self.done[2] += effort

        def tensor_done(self, name: str) -> None:
            self.done[0] += 1

    watching = Watching()
    inspect(make_recipe(llama, ["e0", "e1"]), progress=watching)
    assert watching.stages == ["reading headers", "comparing"]
    assert watching.done == pytest.approx(watching.expected)
    assert watching.done[0] == 21
