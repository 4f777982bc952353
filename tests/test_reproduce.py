"""A published merge made again, commits kept while a merge is continued, and repositories of every awkward kind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny
import torch
from click.testing import CliRunner, Result
from hubserver import TestHub, connect, hub_environment
from stopping import Stopped, stop_after

import dopkit
from dopkit.cli import main
from dopkit.errors import HubError, OutputError, PlanError

RECIPE = "base_model: org/base\nmerge_method: dop\nmodels: [org/e0, org/e1@v1]\n"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, llama: Path) -> Iterator[TestHub]:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.chdir(tmp_path)
    with TestHub() as server:
        connect(monkeypatch, server, tmp_path / "cache")
        for name in ("base", "e0", "e1"):
            server.add_folder(f"org/{name}", llama / name)
        server.tag("org/e1", "v1")
        yield server
        assert server.crashes == []


@pytest.fixture
def merged(server: TestHub, tmp_path: Path) -> Path:
    """A merge, published as ``user/merged``; the branches it came from have moved since."""
    folder = dopkit.run(dopkit.parse_recipe(RECIPE), tmp_path / "first").folder
    server.add_folder("user/merged", folder)
    move(server)
    return folder


def move(server: TestHub, repo: str = "org/e0") -> None:
    """Another model on the branch: that of e1 with other weights."""
    files = server.files(repo)
    server.upload(repo, {name: bytes(data[:-64]) + bytes(64) for name, data in files.items() if "-of-" in name})


def invoke(*arguments: str) -> Result:
    result = CliRunner().invoke(main, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


# A published merge


def test_a_published_merge_is_made_again(server: TestHub, merged: Path) -> None:
    commit = server.commit("user/merged").sha
    result = invoke("run", "user/merged")
    assert result.exit_code == 0, result.output
    assert tiny.weights(Path("merged")) == tiny.weights(merged)
    assert result.stdout.splitlines()[-1] == f"the same bytes as user/merged@{commit[:7]}"
    assert (Path("merged") / "dopkit_recipe.yaml").read_text() == (merged / "dopkit_recipe.yaml").read_text()
    assert invoke("run", "user/merged", "--quiet").output == ""
    recipe = dopkit.load_recipe("user/merged")
    assert recipe.name == "merged" and all(ref.pinned for ref in recipe.refs)


def test_what_did_not_come_out_the_same_is_said(server: TestHub, merged: Path) -> None:
    receipt = json.loads((merged / "dopkit_receipt.json").read_text())
    receipt["shards"][0]["sha256"] = "0" * 64
    receipt["versions"]["torch"] = "1.0"
    server.upload("user/merged", {"dopkit_receipt.json": json.dumps(receipt).encode()})
    last = invoke("run", "user/merged").stdout.splitlines()[-1]
    assert last.startswith("not the same bytes as user/merged@") and last.endswith(" was made with torch 1.0")
    last = invoke("run", "user/merged", "-o", "cut", "--max-shard-size", "6KB").stdout.splitlines()[-1]
    assert "was cut into 1 file, this one into" in last
    server.upload("user/merged", {"dopkit_receipt.json": b"{}"})
    result = invoke("run", "user/merged")
    assert result.exit_code == 0
    assert ": the receipt of user/merged@" in result.stdout.splitlines()[-1]
    assert result.stdout.splitlines()[-1].startswith("cannot be compared with user/merged@")


def test_a_merge_in_small_files_is_made_again_in_small_files(server: TestHub, merged: Path) -> None:
    cut = dopkit.run(dopkit.parse_recipe(RECIPE), "cut", dopkit.Options(max_shard_size=6000)).folder
    server.add_folder("user/cut", cut)
    assert len(json.loads(invoke("plan", "user/cut", "-o", "again", "--json").stdout)["files"]) > 1
    result = invoke("run", "user/cut", "-o", "again")
    assert result.stdout.splitlines()[-1].startswith("the same bytes as user/cut@"), result.output
    assert tiny.weights(Path("again")) == tiny.weights(cut)
    other = invoke("run", "user/cut", "-o", "one", "--max-shard-size", "5GB")
    assert "this one into 1: see --max-shard-size" in other.stdout


def test_check_and_plan_take_a_repository(server: TestHub, merged: Path) -> None:
    assert invoke("check", "user/merged").stdout.startswith("user/merged is well-formed: dop over 2 models")
    data = json.loads(invoke("plan", "user/merged", "--json").stdout)
    assert data["base"] == f"org/base@{server.commit('org/base').sha}"
    assert not Path("merged").exists()


def test_show_reads_two_small_files(server: TestHub, merged: Path) -> None:
    server.clear_log()
    text = invoke("show", "user/merged").stdout
    assert text == invoke("show", str(merged)).stdout
    assert {entry.target.rpartition("/")[2] for entry in server.requests("GET /resolve/")} == {
        "dopkit_recipe.yaml",
        "dopkit_receipt.json",
    }
    data = json.loads(invoke("show", "user/merged", "--json").stdout)
    assert data["receipt"] == json.loads((merged / "dopkit_receipt.json").read_text())


def test_what_others_wrote_does_not_steer_the_terminal(server: TestHub, merged: Path) -> None:
    receipt = json.loads((merged / "dopkit_receipt.json").read_text())
    receipt["models"][0]["model"] = "\x1b]0;owned\x07\u202e"
    server.upload("user/merged", {"dopkit_receipt.json": json.dumps(receipt).encode()})
    text = invoke("show", "user/merged").stdout
    assert "?]0;owned??" in text and "\x1b" not in text
    server.upload("user/merged", {"dopkit_recipe.yaml": b'"\\e[2J": 1\n'})
    refused = invoke("check", "user/merged")
    assert refused.exit_code == 1 and "\x1b" not in refused.output


def test_offline_a_receipt_that_was_never_seen_is_not_taken_for_none(
    server: TestHub, merged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dopkit.load_recipe("user/merged")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    shown = invoke("show", "user/merged")
    assert shown.exit_code == 1 and "is not in the cache" in shown.stderr


def test_offline_a_published_merge_is_made_again(
    server: TestHub, merged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    invoke("run", "user/merged", "-o", "online")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    server.clear_log()
    for verb in ("check", "plan", "run"):
        result = invoke(verb, "user/merged")
        assert result.exit_code == 0, result.output
    assert tiny.weights(Path("merged")) == tiny.weights(merged)
    assert result.stdout.splitlines()[-1].startswith("the same bytes as user/merged@")
    assert invoke("show", "user/merged").exit_code == 0
    told = "offline, so tokenizer and other side files that are not in the cache are left out"
    assert invoke("plan", "user/merged", "-o", "new").stdout.count(told) == 1
    assert server.log == []


def test_the_environment_variable_is_enough(server: TestHub, merged: Path, tmp_path: Path) -> None:
    """A process of its own, with nothing patched in it."""
    dopkit.run(dopkit.load_recipe("user/merged"), "online")  # fills the cache, receipt and all
    invoke("show", "user/merged")
    server.clear_log()
    environment = hub_environment(server, tmp_path / "cache") | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "dopkit", "run", "user/merged"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("the same bytes as user/merged@")
    assert tiny.weights(Path("merged")) == tiny.weights(merged)
    assert server.log == []


# Commits while a merge is continued


def stop_in_download(monkeypatch: pytest.MonkeyPatch, tensors: int) -> None:
    def dying(*_: object) -> None:
        raise Stopped

    monkeypatch.setattr("dopkit.checkpoints.repository.HubCheckpoint.fetch", dying)


def interrupt(monkeypatch: pytest.MonkeyPatch, stop: Callable[..., None] = stop_after) -> None:
    with monkeypatch.context() as patch:
        stop(patch, 7)
        with pytest.raises(Stopped):
            dopkit.run(dopkit.parse_recipe(RECIPE), "out")


@pytest.mark.parametrize("stop", [stop_after, stop_in_download])
def test_a_moved_branch_does_not_change_a_merge_that_is_continued(
    server: TestHub, monkeypatch: pytest.MonkeyPatch, stop: Callable[..., None]
) -> None:
    whole = dopkit.run(dopkit.parse_recipe(RECIPE), "whole")
    old = server.commit("org/e0").sha
    for file in Path("cache").rglob("blobs/*"):
        if stop is stop_in_download and file.stat().st_size > 2000:
            file.unlink()
    interrupt(monkeypatch, stop)
    move(server)
    notes: list[str] = []

    class Listening(dopkit.Progress):
        def note(self, text: str) -> None:
            notes.append(text)

    result = dopkit.run(dopkit.parse_recipe(RECIPE), "out", progress=Listening())
    assert tiny.weights(result.folder) == tiny.weights(whole.folder)
    assert result.plan.recipe.models[0].model.revision == old
    assert notes[0] == "continuing an unfinished merge at the commits it began with (--overwrite begins anew)"
    fresh = dopkit.run(dopkit.parse_recipe(RECIPE), "fresh")
    assert tiny.weights(fresh.folder) != tiny.weights(whole.folder)


def test_continuing_asks_the_hub_for_no_branch(server: TestHub, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(monkeypatch)
    server.clear_log()
    dopkit.run(dopkit.parse_recipe(RECIPE), "out")
    asked = {entry.target.partition("?")[0].rpartition("/")[2] for entry in server.requests("GET /api/models/")}
    assert asked == {server.commit(f"org/{name}").sha for name in ("base", "e0", "e1")}


def test_overwrite_begins_anew_at_the_new_commit(server: TestHub, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(monkeypatch)
    move(server)
    result = dopkit.run(dopkit.parse_recipe(RECIPE), "out", dopkit.Options(overwrite=True))
    assert result.plan.recipe.models[0].model.revision == server.commit("org/e0").sha
    assert result.receipt["run"]["resumed"] is False


def test_another_recipe_takes_no_commits_from_an_unfinished_merge(
    server: TestHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(monkeypatch)
    move(server)
    other = dopkit.parse_recipe(RECIPE + "dtype: float32\n")
    assert dopkit.plan(other, "out").recipe.models[0].model.revision == server.commit("org/e0").sha
    with pytest.raises(OutputError, match="unfinished merge of another recipe"):
        dopkit.run(other, "out")


def test_a_merge_of_which_nothing_was_made_is_in_nobodys_way(server: TestHub, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(monkeypatch, stop_in_download)
    assert [path.name for path in Path("out.partial").iterdir() if path.suffix == ".jsonl"] == ["journal.jsonl"]
    result = dopkit.run(dopkit.parse_recipe(RECIPE + "dtype: float32\n"), "out")
    assert result.folder.is_dir() and not Path("out.partial").exists()


def test_a_refusal_after_the_download_leaves_nothing(server: TestHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PlanError("integers differ")

    monkeypatch.setattr("dopkit.pipeline.compare_values", refuse)
    with pytest.raises(PlanError, match="integers differ"):
        dopkit.run(dopkit.parse_recipe(RECIPE), "out")
    assert sorted(path.name for path in Path().iterdir()) == ["cache"]


# Awkward repositories


@pytest.fixture
def pickled(server: TestHub, llama: Path, tmp_path: Path) -> int:
    """``org/old``: e0 as one pickle; its size."""
    torch.save(tiny.read(llama / "e0"), tmp_path / "old.bin")
    files = {"pytorch_model.bin": tmp_path / "old.bin", "config.json": llama / "e0" / "config.json"}
    server.create_repo("org/old", files)
    return (tmp_path / "old.bin").stat().st_size


def test_a_model_of_pickles_is_announced_then_downloaded(server: TestHub, pickled: int) -> None:
    Path("r.yaml").write_text(RECIPE.replace("org/e0", "org/old"))
    commit = server.commit("org/old").sha
    planned = invoke("plan", "r.yaml")
    assert planned.exit_code == 1
    assert f"org/old@{commit[:7]} has no safetensors: its " in planned.stderr
    assert "of .bin files have no headers and must be downloaded before it can be planned" in planned.stderr
    assert "`dopkit run` downloads them" in planned.stderr
    assert not server.requests("GET pytorch_model.bin")

    done = invoke("run", "r.yaml")
    assert done.exit_code == 0, done.output
    assert f"org/old@{commit[:7]} has no safetensors: downloading " in done.stderr
    dopkit.run(dopkit.parse_recipe(RECIPE), "plain")
    assert tiny.weights(Path("r")) == tiny.weights(Path("plain"))
    assert invoke("plan", "r.yaml", "-o", "other").exit_code == 0  # it is in the cache now


def test_pickles_are_not_downloaded_for_a_merge_that_cannot_work(server: TestHub, pickled: int) -> None:
    Path("r.yaml").write_text("base_model: org/base\nmerge_method: dop\nmodels: [org/old, org/nowhere]\n")
    refused = invoke("run", "r.yaml")
    assert refused.exit_code == 1
    assert "cannot merge: 2 problems" in refused.stderr
    assert "must be downloaded before" in refused.stderr and "org/nowhere does not exist" in refused.stderr
    assert not [entry for entry in server.log if entry.host == "storage" and entry.sent > pickled // 2]


def test_pickles_wait_until_nothing_stands_in_the_way(
    server: TestHub, pickled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = dopkit.parse_recipe(RECIPE.replace("org/e0", "org/old"))
    Path("out").mkdir()
    Path("out/mine.txt").touch()
    with pytest.raises(PlanError, match="must be downloaded before(.|\n)*it holds files that dopkit did not make"):
        dopkit.run(recipe, "out")
    monkeypatch.setattr("dopkit.hub.cache_disk", lambda beside: (1000, True))
    with pytest.raises(PlanError, match="too little disk space for downloads: .* needed, 1 kB there"):
        dopkit.run(recipe, "new")
    assert not [entry for entry in server.log if entry.host == "storage" and entry.sent > pickled // 2]


def test_a_renamed_model_works_and_the_plan_says_so(server: TestHub) -> None:
    server.rename("org/e0", "org/expert")
    plan = dopkit.plan(dopkit.parse_recipe(RECIPE), "out")
    assert plan.notes == ("org/e0 is called org/expert now",)
    dopkit.run(dopkit.parse_recipe(RECIPE), "out")
    dopkit.run(dopkit.parse_recipe(RECIPE.replace("org/e0", "org/expert")), "new")
    assert tiny.weights(Path("out")) == tiny.weights(Path("new"))


def test_gated_private_and_missing_models_are_told_in_one_go(server: TestHub) -> None:
    server.set("org/e0", gated=True)
    server.create_repo("org/secret", {}, private=True)
    Path("r.yaml").write_text(
        "base_model: org/base\nmerge_method: dop\nmodels: [org/e0, org/secret, org/nowhere, org/e1@v9]\n"
    )
    refused = invoke("plan", "r.yaml")
    commit = server.commit("org/e0").sha
    login = "    Check the name, or `hf auth login`; a folder would be written ./org/"
    assert refused.stderr.splitlines()[-9:] == [
        "cannot merge: 4 problems",
        f"  org/e0@{commit[:7]} is gated",
        "    Accept its terms on its page on the Hub, then `hf auth login`.",
        "  org/secret does not exist on the Hub, or is private",
        login + "secret",
        "  org/nowhere does not exist on the Hub, or is private",
        login + "nowhere",
        "  org/e1@v9 has no such revision",
        "    Check the branch, tag or commit.",
    ]


def test_a_token_is_in_no_message_and_no_file(
    server: TestHub, merged: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    token = server.token("somebody")
    connect(monkeypatch, server, tmp_path / "cache2", token=token)
    done = invoke("run", "user/merged", "-o", "with-token", "--verbose")
    assert done.exit_code == 0 and any(entry.auth for entry in server.log)
    with server.down(), pytest.raises(HubError) as caught:
        dopkit.load_recipe("user/merged@v9")
    assert token not in done.output + str(caught.value)
    assert not [
        path for path in Path("with-token").rglob("*") if path.is_file() and token.encode() in path.read_bytes()
    ]
