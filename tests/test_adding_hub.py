"""Models on the Hub that grow: read from there, added to, published again; and what is refused there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
from click.testing import CliRunner, Result
from hubserver import CLIENT_WARNING, TestHub, connect

import dopkit
from dopkit import PushOptions, adding, steps
from dopkit.cli import main
from dopkit.errors import DopkitError, HubError, OutputError, PlanError, RecipeError
from dopkit.preparing import Options

pytestmark = pytest.mark.filterwarnings(CLIENT_WARNING)

MERGED = "ann/merged"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, llama: Path) -> Iterator[TestHub]:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.chdir(tmp_path)
    with TestHub() as server:
        connect(monkeypatch, server, tmp_path / "cache", token=server.token("ann"))
        for name in ("base", "e0", "e1", "e2", "e3"):
            server.add_folder(f"org/{name}", llama / name)
        yield server
        assert server.crashes == []


def recipe(*names: str, parameters: str = "{history: all}") -> dopkit.Recipe:
    models = ", ".join(f"org/{name}" for name in names)
    text = f"base_model: org/base\nmerge_method: dop\nparameters: {parameters}\nmodels: [{models}]\n"
    return dopkit.parse_recipe(text, name="merged")


def publish(server: TestHub, repo: str = MERGED, **options: object) -> Path:
    """Two models merged in a folder of its own, and published."""
    folder = dopkit.run(recipe("e0", "e1"), Path("made") / repo.replace("/", "-"), Options(**options)).folder  # type: ignore[arg-type]
    dopkit.push(folder, repo)
    server.clear_log()
    return folder


def refusal(error: type[DopkitError], merged: str, *experts: str, **options: object) -> str:
    with pytest.raises(error) as caught:
        adding.add(merged, experts, options=Options(**options))  # type: ignore[arg-type]
    return str(caught.value)


def invoke(*arguments: str) -> Result:
    result = CliRunner().invoke(main, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_the_kept_state_comes_along_from_the_hub(server: TestHub) -> None:
    """user/name with its state grows to the bits of merging all at once; the earlier models are not asked for."""
    publish(server, keep_state=True)
    whole = dopkit.run(recipe("e0", "e1", "e2"), "whole").folder
    server.clear_log()
    result = adding.add(MERGED, ["org/e2"])
    assert result.folder == Path("merged")
    assert tiny.weights(Path("merged")) == tiny.weights(whole)
    assert not any(f"org/{name}" in entry.path for entry in server.log for name in ("e0", "e1"))
    listed = [model["model"] for model in result.receipt["models"]]
    assert listed == [f"org/{name}@{server.commit(f'org/{name}').sha}" for name in ("e0", "e1", "e2")]
    assert all(ref.pinned for ref in dopkit.load_recipe("merged/dopkit_recipe.yaml").refs)


def test_without_state_what_is_lost_is_told(server: TestHub) -> None:
    publish(server)
    made = invoke("add", MERGED, "org/e2")
    assert made.exit_code == 0
    assert "the sums over the earlier models were not kept" in " ".join(made.stderr.split())
    assert "holds 3 models: org/e0@" in made.stdout
    state = json.loads(Path("merged/dopkit_state.json").read_text())
    assert "history: last" in state["inexact"]


def test_a_plan_downloads_no_weights(server: TestHub) -> None:
    publish(server, keep_state=True)
    cache = Path("cache/hub/models--ann--merged")
    made = adding.plan_addition(MERGED, ["org/e2"])
    assert not [path for path in cache.rglob("*.safetensors")]
    assert not Path("merged").exists() and not Path("merged.partial").exists()
    sizes = {name: len(data) for name, data in server.files(MERGED).items() if name.startswith(("state/", "model"))}
    assert made.continues is not None
    state = sum(size for name, size in sizes.items() if name.startswith("state/"))
    assert made.continues.download_bytes == state
    e2 = sum(len(data) for name, data in server.files("org/e2").items() if name.endswith(".safetensors"))
    assert made.download_bytes == e2 + state + sizes["model.safetensors"]
    shown = invoke("add", MERGED, "org/e2", "--plan").stdout
    assert f"goes on from ann/merged@{server.commit(MERGED).sha[:7]} after 2 models (org/e0, org/e1)" in shown
    assert "the kept state of its folds is read" in shown


def test_it_is_published_where_it_came_from(server: TestHub) -> None:
    """By default back to the repository: weights, state and recipe are new, in one commit, and nothing is left over."""
    publish(server, keep_state=True, save_steps=True)
    before = server.commit(MERGED).sha
    assert not any(name.startswith("steps/") for name in server.files(MERGED))
    assert any(name.startswith("state/") for name in server.files(MERGED))
    result = adding.add(MERGED, ["org/e2"], options=Options(push=PushOptions(), keep_state=True))
    assert result.pushed is not None and result.pushed.repo_id == MERGED
    assert server.commit(MERGED).parent == before
    there = server.files(MERGED)
    mine = {path.relative_to("merged").as_posix(): path for path in Path("merged").rglob("*") if path.is_file()}
    assert there.keys() - {".gitattributes"} == mine.keys()
    assert all(there[name] == path.read_bytes() for name, path in mine.items() if name != "README.md")
    # And once more, from what is there now.
    again = adding.add(MERGED, ["org/e3"], "four", Options(push=PushOptions()))
    assert tiny.weights(Path("four")) == tiny.weights(dopkit.run(recipe("e0", "e1", "e2", "e3"), "whole").folder)
    assert again.pushed is not None
    assert not any(name.startswith("state/") for name in server.files(MERGED))  # it was not kept on, so it is stale


def test_steps_grow_here_and_stay_here(server: TestHub) -> None:
    folder = publish(server)
    adding.add(MERGED, ["org/e2"], options=Options(push=PushOptions(), save_steps=True))
    assert steps.saved(Path("merged")) == [2]
    kept = Path("merged/steps/02")
    assert tiny.weights(kept) == tiny.weights(folder)
    assert {path.name for path in kept.iterdir()} >= {"config.json", "tokenizer.json", "chat_template.jinja"}
    assert not any(name.startswith("steps/") for name in server.files(MERGED))
    said = refusal(PlanError, MERGED, "org/e3", save_steps=True, stream=True)
    assert "--stream stores nothing of it" in said


def test_a_folder_goes_where_its_recipe_says(server: TestHub) -> None:
    """A ``repo_id`` in its recipe is the default of a folder's push, as it is of `run`."""
    folder = dopkit.run(recipe("e0", "e1"), "local").folder
    with (folder / "dopkit_recipe.yaml").open("a") as stream:
        stream.write("repo_id: ann/named\n")
    result = adding.add("local", ["org/e2"], options=Options(push=PushOptions()))
    assert result.pushed is not None and result.pushed.repo_id == "ann/named"
    dopkit.run(recipe("e0", "e1"), "nameless")
    assert "there is no repository to push to" in refusal(PlanError, "nameless", "org/e2", push=PushOptions())


def test_a_model_that_is_in_it(server: TestHub) -> None:
    publish(server)
    commit = server.commit(MERGED).sha[:7]
    for name in ("org/e1", f"org/e1@{server.commit('org/e1').sha}"):
        said = refusal(DopkitError, MERGED, name)
        assert f"is in ann/merged@{commit} already" in said
    adding.add(MERGED, ["org/e2"], options=Options(push=PushOptions()))
    assert "already" in refusal(DopkitError, MERGED, "org/e2", push=PushOptions())


def test_a_repository_that_dopkit_did_not_make(server: TestHub) -> None:
    said = refusal(OutputError, "org/base", "org/e2")
    assert "is not a merge that can grow" in said and "holds no dopkit_receipt.json" in said
    assert "org/nothing" in refusal(HubError, "org/nothing", "org/e2")
    server.create_repo("org/recipe", {"dopkit_recipe.yaml": b"merge_method: average\nmodels: [org/e0]\n"})
    assert "holds no dopkit_receipt.json" in refusal(OutputError, "org/recipe", "org/e2")
    assert not list(Path().glob("*.partial"))


def test_a_revision_is_what_is_gone_on_from(server: TestHub) -> None:
    """An older commit grows by itself; it is not published over a newer one unless a place is named."""
    publish(server, keep_state=True)
    old = server.commit(MERGED).sha
    adding.add(MERGED, ["org/e2"], "three", Options(push=PushOptions()))
    result = adding.add(f"{MERGED}@{old}", ["org/e3"], "other")
    assert [model["model"].split("@")[0] for model in result.receipt["models"]] == ["org/e0", "org/e1", "org/e3"]
    said = refusal(PlanError, f"{MERGED}@{old}", "org/e3", push=PushOptions())
    assert "there is no repository to push to" in said
    result = adding.add(f"{MERGED}@{old}", ["org/e3"], "other", Options(push=PushOptions("ann/other")))
    assert result.already_there and result.pushed is not None and result.pushed.repo_id == "ann/other"


def test_offline_from_the_cache(server: TestHub, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(server, keep_state=True)
    first = adding.add(MERGED, ["org/e2"], "online")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    server.clear_log()
    again = adding.add(MERGED, ["org/e2"], "offline")
    assert server.log == []
    assert tiny.weights(again.folder) == tiny.weights(first.folder)
    assert "is not in the cache" in refusal(PlanError, MERGED, "org/e3")


def test_a_recipe_of_another_may_not_name_folders(server: TestHub, llama: Path) -> None:
    text = f"base_model: {llama}/base\nmerge_method: dop\nmodels: [{llama}/e0, {llama}/e1]\n"
    folder = dopkit.run(dopkit.parse_recipe(text), "local").folder
    dopkit.push(folder, MERGED, PushOptions(allow_local_sources=True))
    said = refusal(RecipeError, MERGED, "org/e2")
    assert "names 3 folders of its author's machine" in said


@pytest.mark.parametrize("file", ["../../secret", "state/../../secret", "/etc/passwd"])
def test_a_state_may_not_name_files_elsewhere(server: TestHub, file: str) -> None:
    folder = publish(server, keep_state=True)
    data = json.loads((folder / "dopkit_state.json").read_text())
    server.upload(MERGED, {"dopkit_state.json": json.dumps(data | {"kept": [file]}).encode()})
    assert "dopkit_state.json is damaged: kept.0" in refusal(OutputError, MERGED, "org/e2")


def test_a_state_that_is_not_there(server: TestHub) -> None:
    publish(server, keep_state=True)
    name = next(name for name in server.files(MERGED) if name.startswith("state/"))
    server.upload(MERGED, {name: None})
    said = refusal(HubError, MERGED, "org/e2")
    assert name in said
    assert not Path("merged").exists()


def test_heads_come_along(server: TestHub, tmp_path: Path) -> None:
    """Every head is in the grown model, here and on the Hub, under the name it had."""
    tiny.make_vit(tmp_path / "backbone")
    server.add_folder("org/backbone", tmp_path / "backbone")
    for number, name in enumerate("abc"):
        plain = tiny.make_vit(tmp_path / f"{name}-plain", labels=number + 2)
        server.add_folder(f"org/{name}", tiny.make_expert(plain, tmp_path / name, seed=number))
    text = "base_model: org/backbone\nmerge_method: dop\nheads: per-task\nmodels: [org/a, org/b]\n"
    dopkit.push(dopkit.run(dopkit.parse_recipe(text), "two").folder, "ann/heads")
    before = server.files("ann/heads")
    adding.add("ann/heads", ["org/c"], options=Options(push=PushOptions()))
    after = server.files("ann/heads")
    heads = ["heads/a.safetensors", "heads/b.safetensors", "heads/c.safetensors"]
    assert sorted(name for name in after if name.startswith("heads/")) == heads
    assert all(after[name] == before[name] for name in heads[:2])
    assert "`c`" in after["README.md"].decode()
    assert [dopkit.load("ann/heads", head=name).config.num_labels for name in "abc"] == [2, 3, 4]


def test_what_was_measured_comes_along(server: TestHub) -> None:
    """The scores of earlier models go on being known, also from a repository."""
    folder = publish(server)
    server.upload(MERGED, {"dopkit_evaluation.json": b'{"scores": "earlier"}'})
    adding.add(MERGED, ["org/e2"])
    assert Path("merged/dopkit_evaluation.json").read_text() == '{"scores": "earlier"}'
    assert not (folder / "dopkit_evaluation.json").exists()


def test_streamed(server: TestHub) -> None:
    """Nothing of MERGED's weights or the expert's is stored, and the bits are the same."""
    publish(server)
    stored = adding.add(MERGED, ["org/e2"], "stored").folder
    dopkit.push(stored, "ann/three")
    streamed = adding.add("ann/three", ["org/e3"], "streamed", Options(stream=True)).folder
    assert not list(Path("cache/hub/models--ann--three").rglob("*.safetensors"))
    assert tiny.weights(streamed) == tiny.weights(adding.add("ann/three", ["org/e3"], "stored-again").folder)


def test_a_push_that_failed_says_what_is_done(server: TestHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that has grown already cannot be added to again: the way on is another command."""
    dopkit.run(recipe("e0", "e1"), "local")

    def broken(*_: object) -> None:
        raise HubError("the Hub has gone away")

    monkeypatch.setattr("dopkit.publishing.push", broken)
    said = refusal(HubError, "local", "org/e2", push=PushOptions("ann/local"))
    assert said.startswith(
        "the Hub has gone away\n  local: holds the added models all the same\n    Go on from it with"
    )
    assert len(json.loads(Path("local/dopkit_state.json").read_text())["models"]) == 3
