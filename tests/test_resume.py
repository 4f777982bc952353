"""An interrupted merge: killed anywhere, it continues and ends with the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from stopping import Stopped, stop_after

import dopkit
from dopkit.adding import add
from dopkit.errors import OutputError

MakeRecipe = Callable[..., dopkit.Recipe]


SHARDS = dopkit.Options(max_shard_size=6000)
EVERYTHING = dopkit.Options(max_shard_size=6000, save_steps=True, keep_state=True)


@pytest.fixture(scope="module")
def whole(llama: Path, tmp_path_factory: pytest.TempPathFactory, make_recipe: MakeRecipe) -> dopkit.Result:
    """A run that nothing disturbed; not to be changed, like the next."""
    return dopkit.run(make_recipe(llama, ["e0", "e1"], "dop"), tmp_path_factory.mktemp("whole") / "whole", SHARDS)


@pytest.fixture(scope="module", params=["opcm", "dop"])
def scaled(request: pytest.FixtureRequest, vit: Path, make_recipe: MakeRecipe) -> dopkit.Recipe:
    """A method that keeps its state, or one whose scale takes a second pass."""
    parameters = {"scale": "norm"} if request.param == "dop" else {}
    return make_recipe(vit, ["e0", "e1", "e2"], request.param, parameters=parameters)


@pytest.fixture(scope="module")
def whole_scaled(tmp_path_factory: pytest.TempPathFactory, scaled: dopkit.Recipe) -> Path:
    return dopkit.run(scaled, tmp_path_factory.mktemp("whole") / "whole", EVERYTHING).folder


def test_what_only_the_first_run_wanted_is_not_kept(
    llama: Path, whole: dopkit.Result, tmp_path: Path, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps and states that were begun are no models: nobody is to take them for such."""
    recipe = make_recipe(llama, ["e0", "e1"], "dop")
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(Stopped):
            dopkit.run(recipe, tmp_path / "out", EVERYTHING)
    partial = tmp_path / "out.partial"
    assert (partial / "steps" / "01").is_dir() and (partial / "state").is_dir()
    dopkit.run(recipe, tmp_path / "out", SHARDS)
    assert tiny.weights(tmp_path / "out") == tiny.weights(whole.folder)
    assert not (tmp_path / "out" / "steps").exists() and not (tmp_path / "out" / "state").exists()
    with pytest.raises(OutputError, match="without the models of earlier steps"):
        dopkit.run(recipe, tmp_path / "out", EVERYTHING)


@pytest.mark.parametrize("tensors", [0, 1, 7, 20])
def test_a_rerun_continues(
    llama: Path,
    whole: dopkit.Result,
    tmp_path: Path,
    make_recipe: MakeRecipe,
    monkeypatch: pytest.MonkeyPatch,
    tensors: int,
) -> None:
    recipe = make_recipe(llama, ["e0", "e1"], "dop")
    with monkeypatch.context() as patch:
        stop_after(patch, tensors)
        with pytest.raises(Stopped):
            dopkit.run(recipe, tmp_path / "out", SHARDS)
    partial = tmp_path / "out.partial"
    assert partial.is_dir() and not (tmp_path / "out").exists()
    assert not (partial / "model.safetensors.index.json").exists()

    made: list[str] = []

    class Watching(dopkit.Progress):
        def tensor(self, name: str) -> None:
            made.append(name)

    result = dopkit.run(recipe, tmp_path / "out", SHARDS, Watching())
    assert len(made) == len(result.plan.jobs) - tensors
    assert not partial.exists()
    assert tiny.weights(tmp_path / "out") == tiny.weights(whole.folder)
    assert result.receipt["shards"] == whole.receipt["shards"]
    assert result.receipt["tensors"].keys() == whole.receipt["tensors"].keys()
    assert result.receipt["run"]["resumed"] is (tensors > 0)


@pytest.mark.parametrize("tensors", [1, 20, 45, 60, 90, 110, 135])
def test_a_rerun_continues_with_steps_state_and_scale(
    tmp_path: Path, scaled: dopkit.Recipe, whole_scaled: Path, monkeypatch: pytest.MonkeyPatch, tensors: int
) -> None:
    """Stopped in either pass, between a step's tensor and its state: every file ends with the same bytes."""
    with monkeypatch.context() as patch:
        stop_after(patch, tensors)
        with pytest.raises(Stopped):
            dopkit.run(scaled, tmp_path / "out", EVERYTHING)
    dopkit.run(scaled, tmp_path / "out", EVERYTHING)
    for folder in ("", "steps/01", "steps/02", "state"):
        assert tiny.weights(tmp_path / "out" / folder) == tiny.weights(whole_scaled / folder), folder
    state = [(folder / "dopkit_state.json").read_bytes() for folder in (tmp_path / "out", whole_scaled)]
    assert state[0] == state[1]
    assert not (tmp_path / "out" / "unscaled").exists()


def test_an_addition_continues(
    vit: Path, tmp_path: Path, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`add` in place, stopped and run again; the model it grows from is whole until then."""
    dopkit.run(make_recipe(vit, ["e0", "e1", "e2"]), tmp_path / "whole")
    dopkit.run(make_recipe(vit, ["e0", "e1"]), tmp_path / "grown")
    before = tiny.weights(tmp_path / "grown")
    with monkeypatch.context() as patch:
        stop_after(patch, 9)
        with pytest.raises(Stopped):
            add(tmp_path / "grown", [str(vit / "e2")])
    assert tiny.weights(tmp_path / "grown") == before
    assert add(tmp_path / "grown", [str(vit / "e2")]).receipt["run"]["resumed"]
    assert tiny.weights(tmp_path / "grown") == tiny.weights(tmp_path / "whole")


def test_bytes_that_were_lost_are_made_again(
    llama: Path, tmp_path: Path, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal is believed only where the disk agrees: a power cut may keep the one and lose the other."""
    recipe = make_recipe(llama, ["e0", "e1"], "average")
    dopkit.run(recipe, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 9)
        with pytest.raises(Stopped):
            dopkit.run(recipe, tmp_path / "out")
    shard = tmp_path / "out.partial" / "model.safetensors"
    data = bytearray(shard.read_bytes())
    data[3000:3100] = bytes(100)
    shard.write_bytes(data)
    journal = tmp_path / "out.partial" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])  # and the last line was cut short
    dopkit.run(recipe, tmp_path / "out")
    assert tiny.weights(tmp_path / "out") == tiny.weights(tmp_path / "whole")


def test_another_recipe_does_not_continue_it(
    llama: Path, tmp_path: Path, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(Stopped):
            dopkit.run(make_recipe(llama, ["e0", "e1"]), tmp_path / "out")
    other = make_recipe(llama, ["e1", "e0"])
    with pytest.raises(OutputError, match=r"unfinished merge of another recipe(.|\n)*--overwrite"):
        dopkit.run(other, tmp_path / "out")
    dopkit.run(other, tmp_path / "out", dopkit.Options(overwrite=True))
    dopkit.run(other, tmp_path / "fresh")
    assert tiny.weights(tmp_path / "out") == tiny.weights(tmp_path / "fresh")


@pytest.mark.slow
def test_ten_kills_change_nothing(llama: Path, tmp_path: Path) -> None:
    """SIGKILL at ten random moments; each rerun continues; the bytes are those of an undisturbed run."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"base_model: {llama}/base\nmerge_method: dop\nparameters: {{solver: adam, num_steps: 200}}\n"
        f"models: [{llama}/e0, {llama}/e1, {llama}/e2]\n"
    )
    killing = [sys.executable, str(Path(__file__).with_name("killing.py")), str(recipe), str(tmp_path / "out"), "10"]
    done = subprocess.run(killing, check=True, capture_output=True, text=True)
    counts = json.loads(done.stdout.splitlines()[-1])
    assert len(counts) == 10
    assert len({count for count in counts if count}) > 2, f"the kills did not fall into the merge: {counts}"
    early = tmp_path.glob("out-early-*")
    assert all(tiny.weights(folder) == tiny.weights(tmp_path / "out") for folder in early)
    assert tiny.weights(tmp_path / "out") == tiny.weights(tmp_path / "out-timed")
