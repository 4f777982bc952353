"""Whole merges over the network: the bytes of a merge from folders, and how often the server was asked for what."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny
import torch
from hubserver import Entry, TestHub, connect, hub_environment
from safetensors.torch import save_file

import dopkit
from dopkit import hub as hub_room
from dopkit.errors import HubError, PlanError
from dopkit.planning import streaming

STREAM = dopkit.Options(stream=True)
RECIPE = "base_model: org/base\nmerge_method: {method}\nmodels: [org/e0, org/e1]\n"
STORAGE = "GET expires"
MODELS = ("base", "e0", "e1")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[TestHub]:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with TestHub() as hub:
        connect(monkeypatch, hub, tmp_path / "cache", token=hub.token("org"))
        yield hub
        assert hub.crashes == []


@pytest.fixture(scope="session")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three private models of 12 layers of 0.6 MB in 2 shards, whose class nobody knows."""
    root = tmp_path_factory.mktemp("deep")
    for seed, name in enumerate(MODELS):
        generator = torch.Generator().manual_seed(seed)
        (root / name).mkdir()
        tensors = {
            f"layers.{layer:02d}.{part}": torch.randn(shape, generator=generator)
            for layer in range(12)
            for part, shape in (("a.weight", (256, 256)), ("b.weight", (256, 320)), ("norm.weight", (256,)))
        }
        names = sorted(tensors)
        weight_map = {}
        for number, part in enumerate((names[:18], names[18:]), 1):
            file = f"model-{number:05d}-of-00002.safetensors"
            save_file({name: tensors[name] for name in part}, root / name / file)
            weight_map |= dict.fromkeys(part, file)
        index = {"metadata": {}, "weight_map": weight_map}
        (root / name / "model.safetensors.index.json").write_text(json.dumps(index))
    return root


def publish(hub: TestHub, root: Path, *, private: bool = False) -> None:
    for name in MODELS:
        hub.create_repo(f"org/{name}", {}, private=private)
        hub.add_folder(f"org/{name}", root / name)
    hub.clear_log()


def recipe(method: str = "average") -> dopkit.Recipe:
    return dopkit.parse_recipe(RECIPE.format(method=method))


def from_folders(root: Path, out: Path, method: str = "average") -> dict[str, bytes]:
    dopkit.run(dopkit.parse_recipe(RECIPE.format(method=method).replace("org/", "./"), folder=root), out)
    return dict(tiny.weights(out))


def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hold two layers of each model at a time: one in use, one ahead."""
    monkeypatch.setattr(streaming, "STREAM_BYTES", 4 * 600_000)
    monkeypatch.setattr(streaming, "LEAST_STREAM_BYTES", 0)


def storage(hub: TestHub) -> list[Entry]:
    return [entry for entry in hub.log if entry.host == "storage"]


def streamed(hub: TestHub) -> list[Entry]:
    """The requests for weights, without those for headers."""
    return [entry for entry in storage(hub) if not (entry.range or "").startswith("bytes=0-")]


# Bytes


@pytest.mark.parametrize("method", ["dop", "average"])
def test_the_bytes_are_those_of_the_folders(hub: TestHub, tmp_path: Path, llama: Path, method: str) -> None:
    publish(hub, llama)
    result = dopkit.run(recipe(method), tmp_path / "out", STREAM)
    assert tiny.weights(tmp_path / "out") == from_folders(llama, tmp_path / "local", method)
    assert result.plan.streamed
    assert list((tmp_path / "cache").rglob("*.safetensors")) == []
    assert (tmp_path / "out" / "tokenizer.json").exists()


def test_files_cut_elsewhere_in_another_order_or_only_one(hub: TestHub, tmp_path: Path, llama: Path) -> None:
    expected = from_folders(llama, tmp_path / "local", "dop")
    tensors = tiny.read(llama / "e1")
    backwards = sorted(tensors, reverse=True)
    for name, cuts in {"one": [backwards], "cut": [backwards[0::3], backwards[1::3], backwards[2::3]]}.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_bytes((llama / "e1" / "config.json").read_bytes())
        weight_map = {}
        for number, part in enumerate(cuts, 1):
            file = "model.safetensors" if len(cuts) == 1 else f"model-{number:05d}-of-{len(cuts):05d}.safetensors"
            save_file({tensor: tensors[tensor] for tensor in part}, folder / file)
            weight_map |= dict.fromkeys(part, file)
        if len(cuts) > 1:
            (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        hub.add_folder(f"org/{name}", folder)
    publish(hub, llama)
    for name in ("one", "cut"):
        text = RECIPE.format(method="dop").replace("org/e1", f"org/{name}")
        dopkit.run(dopkit.parse_recipe(text), tmp_path / f"out-{name}", STREAM)
        assert tiny.weights(tmp_path / f"out-{name}") == expected


def test_the_base_as_one_of_the_models(hub: TestHub, tmp_path: Path, llama: Path) -> None:
    publish(hub, llama)
    text = "base_model: org/base\nmerge_method: dop\nmodels: [org/base, org/e0]\n"
    dopkit.run(dopkit.parse_recipe(text), tmp_path / "out", STREAM)
    dopkit.run(dopkit.parse_recipe(text.replace("org/", "./"), folder=llama), tmp_path / "local")
    assert tiny.weights(tmp_path / "out") == tiny.weights(tmp_path / "local")


def test_a_folder_and_the_hub_in_one_merge(hub: TestHub, tmp_path: Path, llama: Path) -> None:
    publish(hub, llama)
    text = f"base_model: org/base\nmerge_method: dop\nmodels: [org/e0, {llama}/e1]\n"
    dopkit.run(dopkit.parse_recipe(text), tmp_path / "out", STREAM)
    assert tiny.weights(tmp_path / "out") == from_folders(llama, tmp_path / "local", "dop")


# Requests


def test_each_byte_once_few_requests_and_no_token_for_the_storage(hub: TestHub, tmp_path: Path, deep: Path) -> None:
    publish(hub, deep, private=True)
    result = dopkit.run(recipe(), tmp_path / "out", STREAM)
    plan = result.plan
    needed = sum(source.nbytes for source in plan.models)  # an average does not read the base
    got = sum(entry.sent for entry in streamed(hub))
    assert needed <= got <= 1.02 * needed
    assert plan.download_bytes == needed
    assert len(streamed(hub)) <= 2 * 12  # layers, each in one shard
    assert not any(entry.auth for entry in storage(hub))
    assert all(entry.auth for entry in hub.log if entry.host == "hub" and "/resolve/" in entry.path)
    resolved = [entry.path for entry in hub.log if entry.method == "GET" and entry.path.endswith(".safetensors")]
    assert sorted(resolved).count(resolved[0]) == 1  # one address a file
    assert tiny.weights(tmp_path / "out") == from_folders(deep, tmp_path / "local")


def test_little_memory_takes_more_requests_for_the_same_bytes(
    hub: TestHub, tmp_path: Path, deep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(hub, deep)
    little_memory(monkeypatch)
    result = dopkit.run(recipe(), tmp_path / "out", STREAM)
    needed = sum(source.nbytes for source in result.plan.models)
    assert needed <= sum(entry.sent for entry in streamed(hub)) <= 1.02 * needed
    assert len(streamed(hub)) <= 2 * 12 + 2
    assert tiny.weights(tmp_path / "out") == from_folders(deep, tmp_path / "local")


def test_a_plan_asks_little_and_tells_what_will_be_streamed(hub: TestHub, tmp_path: Path, deep: Path) -> None:
    publish(hub, deep)
    downloaded = dopkit.plan(recipe(), tmp_path / "out")
    hub.clear_log()
    plan = dopkit.plan(recipe(), tmp_path / "out", STREAM)
    assert len(hub.log) <= 3 * 8
    assert sum(entry.sent for entry in storage(hub)) <= 3 * 2 * 100_000
    assert plan.streamed and not downloaded.streamed
    assert plan.download_bytes == sum(source.nbytes for source in plan.models) < downloaded.download_bytes
    extra = streaming.STREAM_BYTES + streaming.STREAM_OVERHEAD_BYTES
    beside = [one.memory_bytes - one.program_bytes for one in (plan, downloaded)]
    assert beside[0] == beside[1] + extra
    assert extra <= 100_000_000
    assert plan.notes == downloaded.notes


def test_what_the_cache_has_is_not_fetched(hub: TestHub, tmp_path: Path, deep: Path) -> None:
    publish(hub, deep)
    for name in ("e0", "e1"):
        ref = hub_room.pin(dopkit.parse_recipe(f"merge_method: average\nmodels: [org/{name}]").models[0].model)
        hub_room.fetch(ref, "model-00001-of-00002.safetensors")
    hub.clear_log()
    result = dopkit.run(recipe(), tmp_path / "out", STREAM)
    assert result.plan.download_bytes == sum(source.nbytes for source in result.plan.models) / 2
    assert {entry.query.rpartition("=")[2] for entry in streamed(hub)} == {"model-00002-of-00002.safetensors"}
    assert tiny.weights(tmp_path / "out") == from_folders(deep, tmp_path / "local")


def test_with_everything_in_the_cache_streaming_changes_nothing(hub: TestHub, tmp_path: Path, llama: Path) -> None:
    publish(hub, llama)
    dopkit.run(recipe("dop"), tmp_path / "out")
    hub.clear_log()
    result = dopkit.run(recipe("dop"), tmp_path / "again", STREAM)
    assert not result.plan.streamed
    assert storage(hub) == []
    assert tiny.weights(tmp_path / "out") == tiny.weights(tmp_path / "again")


# When


def test_a_small_disk_is_streamed_by_itself(
    hub: TestHub, tmp_path: Path, deep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(hub, deep)
    monkeypatch.setattr(hub_room, "cache_disk", lambda beside: (1_000_000, False))
    result = dopkit.run(recipe(), tmp_path / "out")
    assert result.plan.streamed
    assert [note for note in result.plan.notes if "stream" in note] == [
        "21.3 MB of downloads do not fit where there is 1 MB, so the weights are streamed"
    ]
    assert list((tmp_path / "cache").rglob("*.safetensors")) == []
    assert tiny.weights(tmp_path / "out") == from_folders(deep, tmp_path / "local")


def test_a_disk_that_holds_the_output_but_no_downloads(
    hub: TestHub, tmp_path: Path, deep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(hub, deep)
    monkeypatch.setattr(hub_room, "cache_disk", lambda beside: (1 << 40, True))
    monkeypatch.setattr("dopkit.writer.OutputFolder.free_bytes", lambda self: 10_000_000)
    assert dopkit.plan(recipe(), tmp_path / "out").streamed
    monkeypatch.setattr("dopkit.writer.OutputFolder.free_bytes", lambda self: 1_000_000)
    with pytest.raises(PlanError, match="too little disk space for the output"):
        dopkit.plan(recipe(), tmp_path / "out")
    monkeypatch.setattr("dopkit.writer.OutputFolder.free_bytes", lambda self: 100_000_000)
    assert not dopkit.plan(recipe(), tmp_path / "out").streamed


def test_pickles_are_kept_in_the_cache(hub: TestHub, tmp_path: Path, llama: Path) -> None:
    expected = from_folders(llama, tmp_path / "local", "dop")
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_bytes((llama / "e1" / "config.json").read_bytes())
    torch.save(tiny.read(llama / "e1"), folder / "pytorch_model.bin")
    publish(hub, llama)
    commit = hub.add_folder("org/pickled", folder)
    result = dopkit.run(
        dopkit.parse_recipe(RECIPE.format(method="dop").replace("org/e1", "org/pickled")), tmp_path / "out", STREAM
    )
    assert f"org/pickled@{commit[:7]}: .bin files cannot be streamed, so they stay in the cache" in result.plan.notes
    assert tiny.weights(tmp_path / "out") == expected


# Misfortunes

FAULTS: dict[str, Callable[[TestHub], None]] = {
    "503": lambda hub: hub.fail(STORAGE, 503, times=4, skip=7),
    "429": lambda hub: hub.fail(STORAGE, 429, times=3, skip=7, retry_after=2),
    "cut": lambda hub: hub.cut(STORAGE, after_bytes=50_000, times=20, skip=7),
    "cut at once": lambda hub: hub.cut(STORAGE, times=3, skip=8),
    "short": lambda hub: hub.wrong_length(STORAGE, by=-1000, times=5, skip=7),
    "long": lambda hub: hub.wrong_length(STORAGE, by=10, times=3, skip=7),
    "slow": lambda hub: hub.slow(STORAGE, 0.01, every=100_000, times=3, skip=7),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_passing_fault_is_survived(hub: TestHub, tmp_path: Path, deep: Path, fault: str) -> None:
    publish(hub, deep)
    FAULTS[fault](hub)
    dopkit.run(recipe(), tmp_path / "out", STREAM)
    assert any(entry.faults for entry in hub.log)
    assert tiny.weights(tmp_path / "out") == from_folders(deep, tmp_path / "local")


# six requests for headers and two windows of two models pass first
LASTING: dict[str, tuple[Callable[[TestHub], None], str]] = {
    "503": (lambda hub: hub.fail(STORAGE, 503, times=None, skip=11), "cannot be read"),
    "429": (lambda hub: hub.fail(STORAGE, 429, times=None, skip=11), "cannot be read"),
    "cut": (lambda hub: hub.cut(STORAGE, times=None, skip=11), "asked for [0-9,]+ bytes of model-.*, got 0"),
    "whole": (lambda hub: hub.whole(STORAGE, times=None, skip=11), "asked for a part of .* answered 200"),
    "long": (lambda hub: hub.wrong_length(STORAGE, by=3, times=None, skip=11), "asked for [0-9,]+ bytes"),
    "403": (lambda hub: hub.fail(STORAGE, 403, times=None, skip=11), "cannot be read"),
}


@pytest.mark.parametrize("fault", LASTING)
def test_a_lasting_fault_is_said_and_a_rerun_finishes(
    hub: TestHub, tmp_path: Path, deep: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    publish(hub, deep)
    little_memory(monkeypatch)
    begin, sentence = LASTING[fault]
    begin(hub)
    with pytest.raises(HubError, match=sentence) as caught:
        dopkit.run(recipe(), tmp_path / "out", STREAM)
    lines = str(caught.value).splitlines()
    assert len(lines) <= 3 and "signature" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    hub.clear_faults()
    result = dopkit.run(recipe(), tmp_path / "out", STREAM)
    assert result.receipt["run"]["resumed"]
    assert tiny.weights(tmp_path / "out") == from_folders(deep, tmp_path / "local")


def test_addresses_that_expire_in_the_middle(hub: TestHub, tmp_path: Path, deep: Path) -> None:
    publish(hub, deep)

    class Expiring(dopkit.Progress):
        def tensor_done(self, name: str) -> None:
            hub.expire_links()

    dopkit.run(recipe(), tmp_path / "out", STREAM, Expiring())
    assert tiny.weights(tmp_path / "out") == from_folders(deep, tmp_path / "local")


def test_a_branch_that_moves_changes_nothing(hub: TestHub, tmp_path: Path, deep: Path) -> None:
    publish(hub, deep)

    class Moving(dopkit.Progress):
        def begin(self, tensors: int, nbytes: int, effort: float) -> None:
            hub.upload("org/e0", {"model-00001-of-00002.safetensors": b"something else"})

    dopkit.run(recipe(), tmp_path / "out", STREAM, Moving())
    assert tiny.weights(tmp_path / "out") == from_folders(deep, tmp_path / "local")


CHILD = "import sys, dopkit; dopkit.run(dopkit.load_recipe(sys.argv[1]), sys.argv[2], dopkit.Options(stream=True))"


def test_killed_in_the_middle_it_continues_over_the_network(hub: TestHub, tmp_path: Path, deep: Path) -> None:
    publish(hub, deep)
    file, out = tmp_path / "recipe.yaml", tmp_path / "out"
    file.write_text(RECIPE.format(method="average"))
    hub.slow(STORAGE, 0.2, every=200_000, times=None, skip=8)
    environment = hub_environment(hub, tmp_path / "cache", token=hub.token("org"))
    command = [sys.executable, "-c", CHILD, str(file), str(out)]
    child = subprocess.Popen(command, env=environment)
    journal = tmp_path / "out.partial" / "journal.jsonl"
    while child.poll() is None and (not journal.exists() or '"crc"' not in journal.read_text()):
        threading.Event().wait(0.01)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not out.exists()
    hub.clear_faults()
    hub.clear_log()
    result = dopkit.run(dopkit.load_recipe(file), out, STREAM)
    assert result.receipt["run"]["resumed"]
    assert sum(entry.sent for entry in streamed(hub)) < sum(source.nbytes for source in result.plan.models)
    assert tiny.weights(out) == from_folders(deep, tmp_path / "local")


def test_stopping_by_hand_does_not_wait_for_the_network(hub: TestHub, tmp_path: Path, deep: Path) -> None:
    publish(hub, deep)
    hub.slow(STORAGE, 0.05, every=1000, times=None, skip=9)

    class Interrupted(dopkit.Progress):
        def tensor(self, name: str) -> None:
            raise KeyboardInterrupt

    running = threading.Event()

    def run() -> None:
        with pytest.raises(KeyboardInterrupt):
            dopkit.run(recipe(), tmp_path / "out", STREAM, Interrupted())
        running.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert running.wait(timeout=10)
    thread.join()


# Other models


def test_tied_twins_are_compared_over_the_network(hub: TestHub, tmp_path: Path) -> None:
    base = tiny.make_llama(tmp_path / "base", tied=True)
    for seed, name in enumerate(("e0", "e1")):
        expert = tiny.make_expert(base, tmp_path / f"plain-{name}", seed)

        def add_twin(tensors: tiny.Tensors) -> tiny.Tensors:
            embedding = tensors.get("model.embed_tokens.weight")
            return tensors if embedding is None else tensors | {"lm_head.weight": embedding.clone()}

        folder = tiny.edit(expert, tmp_path / name, add_twin)
        index = folder / "model.safetensors.index.json"
        weight_map = json.loads(index.read_text())["weight_map"]
        weight_map["lm_head.weight"] = weight_map["model.embed_tokens.weight"]
        index.write_text(json.dumps({"weight_map": weight_map}))
    publish(hub, tmp_path)
    result = dopkit.run(recipe("dop"), tmp_path / "out", STREAM)
    assert any(dropped.twin for dropped in result.plan.dropped)
    assert tiny.weights(tmp_path / "out") == from_folders(tmp_path, tmp_path / "local", "dop")

    def spoil(tensors: tiny.Tensors) -> tiny.Tensors:
        return {name: tensor + 1 if name == "lm_head.weight" else tensor for name, tensor in tensors.items()}

    hub.add_folder("org/e1", tiny.edit(tmp_path / "e1", tmp_path / "spoiled", spoil))
    with pytest.raises(PlanError, match="should be tied to"):
        dopkit.run(recipe("dop"), tmp_path / "spoiled-out", STREAM)
    assert not (tmp_path / "spoiled-out").exists()


def test_a_repository_on_xet_is_read_in_plain_ranges(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, llama: Path
) -> None:
    with TestHub(xet=True) as hub:
        connect(monkeypatch, hub, tmp_path / "cache")
        publish(hub, llama)
        dopkit.run(recipe("dop"), tmp_path / "out", STREAM)
        assert {entry.status for entry in storage(hub)} == {206}
    assert tiny.weights(tmp_path / "out") == from_folders(llama, tmp_path / "local", "dop")


def test_the_command_line(hub: TestHub, tmp_path: Path, deep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from dopkit.cli import main

    publish(hub, deep)
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(RECIPE.format(method="average"))
    plan = CliRunner().invoke(main, ["plan", "recipe.yaml", "-o", "out", "--stream"])
    assert plan.exit_code == 0, plan.output
    assert "needs 14.2 MB streamed, 7.09 MB of disk" in plan.output
    data = json.loads(CliRunner().invoke(main, ["plan", "recipe.yaml", "-o", "out", "--stream", "--json"]).output)
    assert data["streamed"] is True
    run = CliRunner().invoke(main, ["run", "recipe.yaml", "-o", "out", "--stream"])
    assert run.exit_code == 0, run.output
    assert tiny.weights(tmp_path / "out") == from_folders(deep, tmp_path / "local")
