"""A merge from recipe to folder, with Hub sources through the real client; and the Python interface."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
from hubserver import TestHub, connect, hub_environment

import dopkit
from dopkit.errors import MergeError, OutputError, PlanError

RECIPE = "base_model: org/base\nmerge_method: dop\nmodels: [org/e0@main, org/e1@v1]\n"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, llama: Path) -> Iterator[TestHub]:
    with TestHub() as hub:
        connect(monkeypatch, hub, tmp_path / "cache")
        for name in ("base", "e0", "e1"):
            hub.create_repo(f"org/{name}", {})
            hub.add_folder(f"org/{name}", llama / name)
        hub.tag("org/e1", "v1")
        hub.clear_log()
        yield hub
        assert hub.crashes == []


def test_a_plan_of_hub_models_downloads_no_weights(hub: TestHub, tmp_path: Path) -> None:
    plan = dopkit.plan(dopkit.parse_recipe(RECIPE), tmp_path / "out")
    weights = sum(source.nbytes for source in (plan.donor, *plan.models))
    assert plan.download_bytes > weights  # the files, headers included
    assert plan.recipe.models[1].model.text == f"org/e1@{hub.commit('org/e1', 'v1').sha}"
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_merge_of_hub_models_equals_that_of_their_folders(hub: TestHub, tmp_path: Path, llama: Path) -> None:
    dopkit.run(dopkit.parse_recipe(RECIPE), tmp_path / "hub")
    local = RECIPE.replace("org/", "./").replace("@main", "").replace("@v1", "")
    dopkit.run(dopkit.parse_recipe(local, folder=llama), tmp_path / "local")
    assert tiny.weights(tmp_path / "hub") == tiny.weights(tmp_path / "local")
    pinned = (tmp_path / "hub" / "dopkit_recipe.yaml").read_text()
    commits = {name: hub.commit(f"org/{name}", "main").sha for name in ("base", "e0", "e1")}
    assert f"base_model: org/base@{commits['base']}" in pinned
    assert f"- org/e1@{commits['e1']}" in pinned
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "base_model:\n- org/base\n- org/e0\n- org/e1\nbase_model_relation: merge\n" in card
    # The pinned recipe makes it again, whatever the branches do meanwhile.
    hub.upload("org/e0", {"model.safetensors.index.json": b"{}"})
    dopkit.run(dopkit.load_recipe(tmp_path / "hub" / "dopkit_recipe.yaml"), tmp_path / "again")
    assert tiny.weights(tmp_path / "again") == tiny.weights(tmp_path / "hub")


def test_with_everything_in_the_cache_it_runs_offline(
    hub: TestHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dopkit.run(dopkit.parse_recipe(RECIPE), tmp_path / "out")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.clear_log()
    dopkit.run(dopkit.parse_recipe(RECIPE), tmp_path / "offline")
    assert tiny.weights(tmp_path / "offline") == tiny.weights(tmp_path / "out")
    assert hub.log == []


def test_all_unreachable_models_are_named(hub: TestHub, tmp_path: Path) -> None:
    hub.create_repo("org/secret", {}, private=True)
    recipe = dopkit.parse_recipe("base_model: org/base\nmerge_method: dop\nmodels: [org/secret, org/nowhere, ./here]\n")
    with pytest.raises(PlanError) as caught:
        dopkit.plan(recipe, tmp_path / "out")
    assert [problem.what.split(":")[0] for problem in caught.value.problems] == [
        "org/secret does not exist on the Hub, or is private",
        "org/nowhere does not exist on the Hub, or is private",
        "./here",
    ]


def test_two_revisions_that_are_one_commit(hub: TestHub, tmp_path: Path) -> None:
    recipe = dopkit.parse_recipe(RECIPE.replace("org/e0@main", "org/e1@main"))
    with pytest.raises(PlanError, match="is listed twice, under two revisions that are one commit"):
        dopkit.plan(recipe, tmp_path / "out")


def test_models_in_other_files_and_formats(llama: Path, tmp_path: Path) -> None:
    """Shards cut elsewhere, one file, or pickles: the same tensors give the same bytes."""
    import torch
    from safetensors.torch import save_file

    one_file, pickled = tmp_path / "one-file", tmp_path / "pickled"
    for folder in (one_file, pickled):
        folder.mkdir()
        (folder / "config.json").write_bytes((llama / "e0" / "config.json").read_bytes())
    save_file(tiny.read(llama / "e0"), one_file / "model.safetensors")
    torch.save(tiny.read(llama / "e0"), pickled / "pytorch_model.bin")
    found = []
    for expert in (llama / "e0", one_file, pickled):
        recipe = f"base_model: {llama}/base\nmerge_method: dop\nmodels: [{expert}, {llama}/e1]\n"
        dopkit.run(dopkit.parse_recipe(recipe), tmp_path / f"out-{expert.name}")
        found.append(tiny.weights(tmp_path / f"out-{expert.name}"))
    assert found[0] == found[1] == found[2]


def test_the_python_interface_prints_nothing(llama: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (llama / "pair.yaml").write_text("base_model: ./base\nmerge_method: dop\nmodels: [./e0, ./e1]\n")
    recipe = dopkit.load_recipe(llama / "pair.yaml")
    assert dopkit.plan(recipe, tmp_path / "out").output_bytes > 10_000
    result = dopkit.run(recipe, tmp_path / "out")
    assert dopkit.run(recipe, tmp_path / "out").already_there
    assert result.folder == tmp_path / "out" and not result.already_there
    assert json.loads((result.folder / "dopkit_receipt.json").read_text()) == result.receipt
    assert capfd.readouterr() == ("", "")


def test_the_default_folder_is_named_after_the_recipe(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = dopkit.parse_recipe("merge_method: average\nmodels: [./e0]", name="alone", folder=llama)
    assert dopkit.run(recipe).folder == Path("alone")


def test_progress_is_told_everything(llama: Path, tmp_path: Path) -> None:
    class Listening(dopkit.Progress):
        def __init__(self) -> None:
            self.stages: list[str] = []
            self.total = self.bytes_total = self.done = self.bytes_done = 0

        def stage(self, text: str) -> None:
            self.stages.append(text)

        def begin(self, tensors: int, nbytes: int, effort: float) -> None:
            self.total, self.bytes_total, self.effort = tensors, nbytes, effort

        def advance(self, nbytes: int, effort: float) -> None:
            self.bytes_done += nbytes
            self.effort -= effort

        def tensor_done(self, name: str) -> None:
            self.done += 1

    listening = Listening()
    recipe = dopkit.parse_recipe("base_model: ./base\nmerge_method: dop\nmodels: [./e0, ./e1]\n", folder=llama)
    dopkit.run(recipe, tmp_path / "out", progress=listening)
    assert listening.stages == ["reading headers", "merging", "verifying"]
    assert listening.done == listening.total == 21
    assert listening.bytes_done == listening.bytes_total > 10_000
    assert abs(listening.effort) < 1e-9  # all of it was spent


def test_public_names_are_there() -> None:
    assert all(getattr(dopkit, name) is not None for name in dopkit.__all__)
    assert (Path(dopkit.__file__).parent / "py.typed").exists()
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = dopkit.nonsense


@pytest.mark.slow
def test_killed_while_downloading_it_continues(hub: TestHub, tmp_path: Path, llama: Path) -> None:
    """SIGKILL in the middle of a download; the branch moves; the same command ends with what it began with."""
    recipe = tmp_path / "trio.yaml"
    recipe.write_text(RECIPE)
    command = [sys.executable, "-m", "dopkit", "run", str(recipe), "-o", str(tmp_path / "out")]
    environment = hub_environment(hub, tmp_path / "cache")
    weights, headers = r"GET .*filename=model-0000\d-of", 3 * 2
    hub.slow(weights, 60, times=None, skip=headers + 1)  # after one whole file
    child = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while child.poll() is None and len(hub.requests(weights)) < headers + 2:
        time.sleep(0.05)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    hub.clear_faults()
    hub.upload("org/e0", {"model.safetensors.index.json": b"{}"})
    dopkit.run(dopkit.load_recipe(recipe), tmp_path / "out")
    local = RECIPE.replace("org/", "./").replace("@main", "").replace("@v1", "")
    dopkit.run(dopkit.parse_recipe(local, folder=llama), tmp_path / "local")
    assert tiny.weights(tmp_path / "out") == tiny.weights(tmp_path / "local")


class Training(dopkit.Progress):
    """Somebody writes to a model when the first tensor is in hand."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def tensor(self, name: str) -> None:
        os.utime(self.file)


@pytest.mark.parametrize("kept", [False, True])
def test_a_folder_that_is_written_to_meanwhile_is_no_source(llama: Path, tmp_path: Path, kept: bool) -> None:
    """Some of its tensors may be of the new weights; also where it is read for a stage."""
    for name in ("base", "e0", "e1"):
        shutil.copytree(llama / name, tmp_path / name)
    stage = "name: a\nmerge_method: linear\nmodels: [./e0, ./e1]\nparameters: {weight: 0.5}\n---\n"
    text = f"{stage}base_model: ./base\nmerge_method: ties\nmodels: [a]\nparameters: {{density: 0.5}}\n"
    recipe = dopkit.parse_recipe(text, folder=tmp_path)
    options = dopkit.Options(keep_stages=kept)
    progress = Training(sorted((tmp_path / "e1").glob("*.safetensors"))[-1])
    with pytest.raises(MergeError, match=r"(?s)not what they were when the merge began.*e1: its weights have been"):
        dopkit.run(recipe, tmp_path / "out", options, progress)
    assert not (tmp_path / "out").exists()
    if not kept:  # else nothing of the result was made yet
        with pytest.raises(OutputError, match="holds an unfinished merge"):
            dopkit.run(recipe, tmp_path / "out", options)
    again = dopkit.run(recipe, tmp_path / "out", dopkit.Options(keep_stages=kept, overwrite=True))
    assert not again.already_there
