"""Adding to a merged model in every kind of place, and what stands in its way there; kinds of models that are added."""

from __future__ import annotations

import json
import os
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from stopping import Stopped, stop_after

import dopkit
from dopkit import adding, earlier, report
from dopkit.errors import DopkitError, EvaluationError, OutputError, PlanError, RecipeError
from dopkit.evaluation.targets import targets
from dopkit.preparing import Options
from dopkit.writer import OutputFolder

MakeRecipe = Callable[..., dopkit.Recipe]


@pytest.fixture
def merged(vit: Path, tmp_path: Path, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``merged`` in the current folder, of e0 and e1."""
    monkeypatch.chdir(tmp_path)
    return dopkit.run(make_recipe(vit, ["e0", "e1"]), tmp_path / "merged").folder


@pytest.fixture
def whole(vit: Path, tmp_path: Path, make_recipe: MakeRecipe) -> Path:
    return dopkit.run(make_recipe(vit, ["e0", "e1", "e2"]), tmp_path / "whole").folder


def refusal(error: type[DopkitError], *arguments: object, **keys: object) -> str:
    with pytest.raises(error) as caught:
        adding.add(*arguments, **keys)  # type: ignore[arg-type]
    return str(caught.value)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Where MERGED is


@pytest.mark.parametrize("text", ["merged", "./merged", "merged/", "deep/../merged"])
def test_a_folder_in_any_spelling(vit: Path, merged: Path, whole: Path, text: str) -> None:
    Path("deep").mkdir()
    result = adding.add(text, [str(vit / "e2")])
    assert result.folder.resolve() == merged.resolve()
    assert tiny.weights(merged) == tiny.weights(whole)
    assert names(Path()) == ["deep", "merged", "whole"]
    recipe = dopkit.load_recipe(merged / "dopkit_recipe.yaml")
    assert [ref.folder for ref in recipe.refs] == [vit / name for name in ("base", "e0", "e1", "e2")]


def test_a_link_goes_on_pointing_there(vit: Path, merged: Path, whole: Path) -> None:
    Path("deep").mkdir()
    Path("deep/link").symlink_to("../merged")
    adding.add("deep/link", [str(vit / "e2")])
    assert Path("deep/link").is_symlink()
    assert tiny.weights(merged) == tiny.weights(whole)
    assert names(Path("deep")) == ["link"] and names(Path()) == ["deep", "merged", "whole"]


def test_a_link_to_another_disk(vit: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    """The recipe that is left there names the models, whether they are looked for from the link or from the folder."""
    real, link = tmp_path / "large" / "disk" / "merged", tmp_path / "merged"
    real.mkdir(parents=True)
    link.symlink_to(real)
    dopkit.run(make_recipe(vit, ["e0", "e1"]), link)
    adding.add(link, [str(vit / "e2")])
    assert link.is_symlink()
    for folder in (link, real):
        base, *_, last = targets(folder, sources=True)
        assert (base.backbone, last.backbone) == (vit / "base", vit / "e2")
    assert earlier.look(link).recipe.refs == earlier.look(real).recipe.refs


@pytest.mark.parametrize("text", [".", "../merged"])
def test_the_folder_one_is_in_is_not_pulled_away(
    vit: Path, merged: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """A shell would be left in a folder that is no more. Elsewhere it may go."""
    monkeypatch.chdir(merged)
    before = names(merged)
    assert "is the folder you are in, and would be replaced as a whole" in refusal(PlanError, text, [str(vit / "e2")])
    assert names(merged) == before and names(merged.parent) == ["merged"]
    assert adding.add(text, [str(vit / "e2")], "../out").folder.is_dir()


def test_a_folder_that_cannot_be_replaced(vit: Path, merged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder around it is read-only. (Whoever runs the tests may be allowed everything.)"""
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != merged.parent and access(path, mode))
    assert f"{merged.parent}: cannot be written to" in refusal(PlanError, "merged", [str(vit / "e2")])
    assert names(Path()) == ["merged"]


def test_a_disk_that_is_too_small(vit: Path, merged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old model stays until the new one is complete, so there must be room for both."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 10**6 - 1000, 1000))
    assert "too little disk space for the output" in refusal(PlanError, "merged", [str(vit / "e2")])
    assert names(Path()) == ["merged"]


@pytest.mark.parametrize("file", ["steps/01/config.json", "steps/02/model.safetensors"])
def test_a_disk_that_is_full_at_last(
    tmp_path: Path, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    """Told without a traceback while earlier steps are copied, and finished by the same command."""
    base = tiny.make_vit(tmp_path / "base")
    for seed, name in enumerate(("e0", "e1", "e2")):
        tiny.make_expert(base, tmp_path / name, seed)
    merged = dopkit.run(make_recipe(tmp_path, ["e0", "e1"]), tmp_path / "merged", Options(save_steps=True)).folder
    copy = shutil.copyfile

    def another_disk(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    def full(source: Path, target: Path) -> None:
        if str(target).endswith(f"merged.partial/{file}.new"):
            raise OSError(28, "No space left on device")
        copy(source, target)

    monkeypatch.setattr(os, "link", another_disk)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        said = refusal(OutputError, merged, [str(tmp_path / "e2")])
    assert f"cannot write to {merged}.partial/{file}\n  No space left on device" in said
    assert adding.add(merged, [str(tmp_path / "e2")]).receipt["run"]["resumed"]
    assert (merged / file).is_file()


def test_files_of_ones_own_are_not_taken_away(vit: Path, merged: Path) -> None:
    (merged / "model-q4.gguf").write_bytes(b"mine")
    (merged / "notes").mkdir()
    (merged / "notes" / "day.txt").write_text("mine")
    said = refusal(OutputError, "merged", [str(vit / "e2")])
    assert "files that are not of the merge: model-q4.gguf, notes/day.txt" in said
    assert adding.add("merged", [str(vit / "e2")], "other").folder.is_dir()
    assert (merged / "notes" / "day.txt").read_text() == "mine"
    adding.add("merged", [str(vit / "e2")], options=Options(overwrite=True))
    assert not (merged / "notes").exists()


@pytest.mark.parametrize(
    "own", ["runs/may/12/log.txt", "try_it.py", "LICENSE-mine", "steps.txt", ".git/config", ".env", "my.model", "data"]
)
def test_nor_those_that_lie_deep_or_have_a_name_like_ours(vit: Path, merged: Path, tmp_path: Path, own: str) -> None:
    (merged / own).parent.mkdir(parents=True, exist_ok=True)
    if own == "data":
        (merged / own).symlink_to(tmp_path)
    else:
        (merged / own).write_text("mine")
    assert f"files that are not of the merge: {own}" in refusal(OutputError, "merged", [str(vit / "e2")])
    (merged / own).unlink()
    for left in (".gitattributes", ".cache/huggingface/x", "journal.jsonl"):
        (merged / left).parent.mkdir(parents=True, exist_ok=True)
        (merged / left).write_text("not mine")
    assert adding.add("merged", [str(vit / "e2")]).folder.is_dir()


def test_side_files_that_the_base_brings_again_are_no_strangers(
    llama: Path, tmp_path: Path, make_recipe: MakeRecipe
) -> None:
    recipe = make_recipe(llama, ["e0", "e1"], chat_template="chatml", tokenizer={"source": "base"})
    merged = dopkit.run(recipe, tmp_path / "merged").folder
    assert (merged / "chat_template.jinja").is_file() and (merged / "tokenizer.json").is_file()
    assert adding.add(merged, [str(llama / "e2")]).folder == merged


@pytest.mark.parametrize("kind", ["steps", "state", "heads", "report"])
def test_everything_that_dopkit_writes_is_its_own(tmp_path: Path, make_recipe: MakeRecipe, kind: str) -> None:
    tiny.make_vit(tmp_path / "base")
    for seed, name in enumerate(("e0", "e1", "e2")):
        tiny.make_expert(tiny.make_vit(tmp_path / f"{name}-plain", labels=seed + 2), tmp_path / name, seed)
    recipe = make_recipe(tmp_path, ["e0", "e1"], heads="per-task" if kind == "heads" else "drop")
    options = Options(save_steps=kind == "steps", keep_state=kind == "state", max_shard_size=20_000)
    merged = dopkit.run(recipe, tmp_path / "merged", options).folder
    if kind == "report":
        report.write(merged)
    assert any(path.name.startswith(kind) for path in merged.iterdir())
    result = adding.add(merged, [str(tmp_path / "e2")])
    assert len(result.receipt["models"]) == 3


# Interrupted


def test_an_unfinished_addition_of_another_model(
    vit: Path, merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is finished, or thrown away on request; never mixed."""
    tiny.make_expert(vit / "base", tmp_path / "e9", seed=9)
    before = tiny.weights(merged)
    with monkeypatch.context() as patch:
        stop_after(patch, 9)
        with pytest.raises(Stopped):
            adding.add("merged", [str(vit / "e2")])
    said = refusal(OutputError, "merged", ["./e9"])
    assert "holds an unfinished merge" in said and "throw it away with --overwrite" in said
    assert tiny.weights(merged) == before
    result = adding.add("merged", ["./e9"], options=Options(overwrite=True))
    assert [Path(model["model"]).name for model in result.receipt["models"]] == ["e0", "e1", "e9"]
    assert not result.receipt["run"]["resumed"]


def test_two_additions_at_once_lose_none(
    vit: Path, merged: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one is complete just when this one has made its plan: this one does not take its place."""
    tiny.make_expert(vit / "base", tmp_path / "e9", seed=9)
    finish = adding.finish

    def meanwhile(*arguments: object, **keys: object) -> object:
        monkeypatch.setattr(adding, "finish", finish)
        adding.add("merged", [str(vit / "e2")])
        return finish(*arguments, **keys)  # type: ignore[arg-type]

    monkeypatch.setattr(adding, "finish", meanwhile)
    said = refusal(OutputError, "merged", ["./e9"])
    assert said.startswith("merged has changed") and said.endswith("Add again.")
    assert tiny.weights(merged) == tiny.weights(whole) and not Path("merged.partial").exists()
    result = adding.add("merged", ["./e9"])
    assert [Path(model["model"]).name for model in result.receipt["models"]] == ["e0", "e1", "e2", "e9"]


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_killed_while_the_folders_change_places(
    vit: Path, merged: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, renames: int
) -> None:
    """The old folder goes aside, the new one takes its place. Killed at any moment, one of them is there in the end."""
    rename, left = Path.rename, [renames]

    def dying(self: Path, target: Path) -> Path:
        if self.name in ("merged", "merged.partial"):
            if left[0] == 0:
                raise Stopped
            left[0] -= 1
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dying)
        if renames < 2:
            with pytest.raises(Stopped):
                adding.add("merged", [str(vit / "e2")])
        else:
            adding.add("merged", [str(vit / "e2")])
    if renames < 2:
        assert merged.exists() is (renames == 0)
        again = adding.add("merged", [str(vit / "e2")])  # the same command finishes it
        assert again.receipt["run"]["resumed"]
    assert tiny.weights(merged) == tiny.weights(whole)
    assert names(Path()) == ["merged", "whole"]
    assert "journal.jsonl" not in names(merged)


def test_killed_after_what_waited_for_its_scale_is_gone(
    vit: Path, tmp_path: Path, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything is scaled already: nothing is folded again."""
    recipe = make_recipe(vit, ["e0", "e1"], parameters={"scale": "norm"})
    dopkit.run(recipe, tmp_path / "whole")

    def stop(self: OutputFolder) -> None:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(OutputFolder, "publish", stop)
        with pytest.raises(Stopped):
            dopkit.run(recipe, tmp_path / "out")
    assert not (tmp_path / "out.partial" / "unscaled").exists()
    folded: list[str] = []

    class Watching(dopkit.Progress):
        def tensor(self, name: str) -> None:
            folded.append(name)

    dopkit.run(recipe, tmp_path / "out", progress=Watching())
    assert folded == []
    assert tiny.weights(tmp_path / "out") == tiny.weights(tmp_path / "whole")
    assert not (tmp_path / "out" / "unscaled").exists()


def test_scores_that_fail_say_what_is_done(vit: Path, merged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise EvaluationError("the data is gone")

    monkeypatch.setattr("dopkit.pipeline.assess", broken)
    monkeypatch.setattr("dopkit.adding.check_tasks", lambda tasks: None)
    said = refusal(EvaluationError, "merged", [str(vit / "e2")], options=Options(tasks="tasks.yaml"))
    assert "the data is gone" in said and "holds the added models all the same" in said and "`dopkit eval`" in said


# What is added


def test_an_expert_of_another_dtype(vit: Path, merged: Path, whole: Path, tmp_path: Path) -> None:
    """A half-precision copy of an expert: the result keeps the base's dtype, and differs by that rounding alone."""
    tiny.edit(vit / "e2", tmp_path / "half", lambda tensors: {name: tensor.half() for name, tensor in tensors.items()})
    adding.add("merged", ["./half"])
    found, expected = tiny.read(merged), tiny.read(whole)
    assert all(tensor.dtype == torch.float32 for tensor in found.values())
    assert not tiny.same(found, expected)
    for name, tensor in found.items():
        assert torch.allclose(tensor, expected[name], rtol=2e-3, atol=2e-4), name


def test_a_sharded_bfloat16_model(llama: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    """In shards of another size than MERGED's, too: the tensors are the same."""
    merged = dopkit.run(make_recipe(llama, ["e0", "e1"]), tmp_path / "merged", Options(max_shard_size=6000)).folder
    assert len(list(merged.glob("model-*.safetensors"))) > 2
    adding.add(merged, [str(llama / "e2")], tmp_path / "one")
    adding.add(merged, [str(llama / "e2")], tmp_path / "many", Options(max_shard_size=4000))
    assert (tmp_path / "one" / "model.safetensors").is_file()
    assert len(list((tmp_path / "many").glob("model-*.safetensors"))) > 3
    assert tiny.same(tiny.read(tmp_path / "one"), tiny.read(tmp_path / "many"))
    assert all(tensor.dtype == torch.bfloat16 for tensor in tiny.read(tmp_path / "one").values())


def test_a_mean_without_a_base(vit: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    whole = dopkit.run(make_recipe(vit, ["e0", "e1", "e2"], "average", base=None), tmp_path / "whole").folder
    merged = dopkit.run(make_recipe(vit, ["e0", "e1"], "average", base=None), tmp_path / "merged").folder
    assert json.loads((merged / "dopkit_state.json").read_text())["base"] is None
    result = adding.add(merged, [str(vit / "e2")])
    assert tiny.weights(merged) == tiny.weights(whole)
    assert result.receipt["base"] is None and result.plan.whole_recipe.base_model is None
    assert names(merged) == names(whole)


def test_a_drawn_order_is_kept(vit: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    """What was shuffled once stays as it was merged; the new model comes last."""
    merged = dopkit.run(make_recipe(vit, ["e0", "e1"], order="shuffle", seed=1), tmp_path / "merged")
    drawn = [model["model"] for model in merged.receipt["models"]]
    result = adding.add(merged.folder, [str(vit / "e2")])
    assert [Path(model["model"]).name for model in result.receipt["models"]] == [
        *(Path(one).name for one in drawn),
        "e2",
    ]
    assert dopkit.load_recipe(merged.folder / "dopkit_recipe.yaml").order == "given"


def test_receipt_and_report_tell_of_all_steps(vit: Path, merged: Path, whole: Path) -> None:
    adding.add("merged", [str(vit / "e2")])
    grown, once = (json.loads((folder / "dopkit_receipt.json").read_text()) for folder in (merged, whole))
    assert (grown["merged_before"], once["merged_before"]) == (2, 0)
    for name, tensor in once["tensors"].items():
        assert grown["tensors"][name].get("steps") == tensor.get("steps"), name
    page = report.write(merged).read_text()
    assert all(f"{name}" in page for name in ("e0", "e1", "e2"))
    card = (merged / "README.md").read_text()
    assert "the last of several merges, which added 1 model" in card and "merged from 3 models" in card


def test_a_folder_that_reads_like_a_repository(vit: Path, merged: Path, tmp_path: Path) -> None:
    """`models/e2` means the Hub in a recipe; here a folder of that name is there, and one of both is meant."""
    shutil.copytree(vit / "e2", tmp_path / "models" / "e2")
    said = refusal(RecipeError, "merged", ["models/e2"])
    assert "Write ./models/e2 for the folder, or models/e2@main for the repository." in said
    assert adding.add("merged", ["./models/e2"]).receipt["merged_before"] == 2


# Reading the experts again


def test_earlier_models_that_changed_are_not_read_again(vit: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    for name in ("base", "e0", "e1", "e2"):
        shutil.copytree(vit / name, tmp_path / name)
    merged = dopkit.run(make_recipe(tmp_path, ["e0", "e1"]), tmp_path / "merged").folder
    shutil.rmtree(tmp_path / "e1")
    tiny.make_expert(vit / "base", tmp_path / "e1", seed=9)
    said = refusal(PlanError, merged, [str(tmp_path / "e2")], from_experts=True)
    assert "is not what went into" in said and "e1" in said
    shutil.copytree(vit / "e0", tmp_path / "copy")
    assert "the same weights" in refusal(PlanError, merged, [str(tmp_path / "copy")], from_experts=True)


def test_reading_again_throws_no_other_merge_away(vit: Path, merged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 9)
        with pytest.raises(Stopped):
            adding.add("merged", [str(vit / "e2")])
    assert "holds an unfinished merge" in refusal(OutputError, "merged", [str(vit / "e2")], from_experts=True)
