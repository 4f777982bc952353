"""Publishing a merged folder, through the real client against a Hub on loopback."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from hubserver import CLIENT_WARNING, TestHub, connect, hub_environment

import dopkit
from dopkit import PushOptions
from dopkit.errors import DopkitError, HubError, OutputError

pytestmark = pytest.mark.filterwarnings(CLIENT_WARNING)

REPO = "ann/merged"
RECIPE = "base_model: org/base\nmerge_method: average\nmodels: [org/e0, org/e1]\n"
COMMIT = "POST /api/models/ann/merged/commit/"
UPLOADS = "PUT "
MakeRecipe = Callable[..., dopkit.Recipe]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[TestHub]:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between tries, the client's and ours
    with TestHub() as hub:
        connect(monkeypatch, hub, tmp_path / "cache", token=hub.token("ann"))
        yield hub
        assert hub.crashes == []


@pytest.fixture(scope="module")
def made(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merge of local folders in four shards, made once."""
    recipe = dopkit.parse_recipe(
        f"base_model: {llama}/base\nmerge_method: average\nmodels: [{llama}/e0, {llama}/e1]\n", name="made"
    )
    options = dopkit.Options(max_shard_size=5000)
    return dopkit.run(recipe, tmp_path_factory.mktemp("made") / "made", options).folder


@pytest.fixture
def merged(made: Path, tmp_path: Path) -> Path:
    """The same with receipt and recipe as they are when the sources lie on the Hub."""
    folder = tmp_path / "merged"
    shutil.copytree(made, folder)
    receipt = json.loads((folder / "dopkit_receipt.json").read_text())
    for source in (receipt["base"], *receipt["models"]):
        source["model"] = f"org/{Path(source['model']).name}@{'1' * 40}"
    (folder / "dopkit_receipt.json").write_text(json.dumps(receipt))
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def repo(hub: TestHub) -> Any:
    return hub.site.store.repo("models", REPO)


def on_the_hub(hub: TestHub, revision: str = "main") -> dict[str, bytes]:
    """The repository's files but the Hub's own one, the card as it was before it got its address."""
    found = {name: data for name, data in hub.files(REPO, revision).items() if name != ".gitattributes"}
    if "README.md" in found:
        found["README.md"] = found["README.md"].replace(
            b'"ann/merged")', b'"made")  # or the folder or repository it is in'
        )
    return found


def refusal(merged: Path, **options: object) -> str:
    with pytest.raises(DopkitError) as caught:
        dopkit.push(merged, REPO, PushOptions(**options))  # type: ignore[arg-type]
    return str(caught.value)


# A repository of one's own


def test_everything_appears_in_one_commit_and_is_loaded_from_there(hub: TestHub, merged: Path) -> None:
    from transformers import AutoModelForCausalLM

    done = dopkit.push(merged, REPO)
    assert len([name for name in files(merged) if name.endswith(".safetensors")]) > 2
    assert on_the_hub(hub) == files(merged)
    head = hub.commit(REPO)
    assert (done.repo_id, done.commit, done.url) == (REPO, head.sha, f"{hub.endpoint}/{REPO}")
    assert done.files == len(files(merged))
    assert head.title == "Upload a merge made with dopkit"
    parent = repo(hub).commits[head.parent or ""]
    assert set(parent.files) == {".gitattributes"}  # nothing showed before
    assert 'from_pretrained("ann/merged")' in hub.files(REPO)["README.md"].decode()
    model = AutoModelForCausalLM.from_pretrained(REPO)
    assert tiny.same(tiny.read(merged), {name: tensor for name, tensor in model.state_dict().items()})


def test_a_second_push_sends_nothing(hub: TestHub, merged: Path) -> None:
    first = dopkit.push(merged, REPO)
    hub.clear_log()
    again = dopkit.push(merged, REPO)
    assert (again.commit, again.files) == (first.commit, 0)
    assert {entry.method for entry in hub.log} == {"GET"}


def test_an_update_drops_what_would_be_loaded_along(hub: TestHub, merged: Path, llama: Path, tmp_path: Path) -> None:
    dopkit.push(merged, REPO)
    hub.upload(REPO, {"picture.png": b"mine", "vocab.json": b"{}", "LICENSE": b"mine", "tool.py": b"mine"})
    recipe = dopkit.parse_recipe(f"merge_method: average\nmodels: [{llama}/e0, {llama}/e1]\n")
    other = dopkit.run(recipe, tmp_path / "other").folder
    dopkit.push(other, REPO, PushOptions(allow_local_sources=True, message="Another\n\nFor a reason."))
    kept = {"picture.png", "LICENSE", "tool.py", ".gitattributes"}
    assert set(hub.files(REPO)) == {*files(other), *kept}
    assert (hub.commit(REPO).title, hub.commit(REPO).message) == ("Another", "For a reason.")


def test_a_private_repository(hub: TestHub, merged: Path) -> None:
    dopkit.push(merged, REPO, PushOptions(private=True))
    assert repo(hub).private
    assert dopkit.push(merged, REPO, PushOptions(private=True)).files == 0
    hub.set(REPO, private=False)
    assert "it is public, and --private was asked for" in refusal(merged, private=True)


def test_a_branch_is_made(hub: TestHub, merged: Path) -> None:
    hub.create_repo(REPO, {"README.md": b"mine"})
    done = dopkit.push(merged, REPO, PushOptions(revision="try/1"))
    assert on_the_hub(hub, "try/1") == files(merged)
    assert hub.files(REPO) == {"README.md": b"mine"}
    assert done.url.endswith("/ann/merged/tree/try/1")
    assert dopkit.push(merged, REPO, PushOptions(revision="try/1")).files == 0
    # From a main that holds this very merge, too.
    dopkit.push(merged, REPO)
    dopkit.push(merged, REPO, PushOptions(revision="v1"))
    assert hub.commit(REPO, "v1").sha == hub.commit(REPO).sha


def test_a_pull_request_is_opened_once(hub: TestHub, merged: Path) -> None:
    hub.create_repo(REPO, {"model.safetensors": b"of somebody"})
    done = dopkit.push(merged, REPO, PushOptions(create_pr=True))
    assert done.url == f"{hub.endpoint}/{REPO}/discussions/1"
    assert on_the_hub(hub, "refs/pr/1") == files(merged)  # and the old weights are gone there
    assert hub.files(REPO) == {"model.safetensors": b"of somebody"}
    hub.clear_log()
    again = dopkit.push(merged, REPO, PushOptions(create_pr=True))
    assert (again.url, again.commit, again.files) == (done.url, done.commit, 0)
    assert not hub.requests(UPLOADS) and not hub.requests(COMMIT)


# What may stand in the way


def test_a_model_of_somebody_is_not_overwritten(hub: TestHub, merged: Path) -> None:
    before = {"pytorch_model.bin": b"old", "config.json": b"{}", "notes.txt": b"mine"}
    hub.create_repo(REPO, before)
    assert refusal(merged).splitlines() == [
        "ann/merged holds files that dopkit did not make",
        "  Choose another name, or replace what is there with --overwrite.",
    ]
    assert hub.files(REPO) == before
    dopkit.push(merged, REPO, PushOptions(overwrite=True))
    assert on_the_hub(hub) == files(merged) | {"notes.txt": b"mine"}


def test_who_may_not_push_is_told(hub: TestHub, merged: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub.create_repo("bob/model", {"model.safetensors": b"x"})

    def headline(repo: str, token: str | None) -> str:
        connect(monkeypatch, hub, tmp_path / "cache", token=token)
        with pytest.raises(HubError) as caught:
            dopkit.push(merged, repo)
        return caught.value.headline

    assert headline(REPO, None) == "cannot push to ann/merged: there is no token"
    assert headline(REPO, hub.token("ann", role="read")) == "cannot push to ann/merged: the token may only read"
    assert headline(REPO, "hf_nonsense").startswith("cannot push to ann/merged")
    assert headline("bob/new", hub.token("ann")) == "cannot make bob/new: it is not under ann's names"
    assert headline("bob/model", hub.token("ann")) == "cannot push to bob/model: it belongs to somebody else"
    assert headline("merged", hub.token("ann")).startswith("'merged' is not the name of a repository")
    hub.rename("bob/model", "bob/renamed")
    assert headline("bob/model", hub.token("bob")) == "bob/model has been renamed"
    dopkit_org = hub.token("ann", orgs=("team",))
    connect(monkeypatch, hub, tmp_path / "cache", token=dopkit_org)
    assert dopkit.push(merged, "team/model").files > 0
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refusal(merged)


def test_local_sources_only_when_allowed(hub: TestHub, made: Path) -> None:
    text = refusal(made)
    assert "the recipe names local folders, so nobody else can make the merge again: " in text
    assert "--allow-local-sources" in text and not hub.requests("POST ")
    dopkit.push(made, REPO, PushOptions(allow_local_sources=True))
    assert "only who has them can make it again" in hub.files(REPO)["README.md"].decode()


def test_a_folder_that_is_not_its_receipt(hub: TestHub, merged: Path, tmp_path: Path) -> None:
    shard = next(merged.glob("*.safetensors"))
    data = shard.read_bytes()
    shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert f"{shard.name}: is not what was merged: its sha256 differs" in refusal(merged)
    shard.write_bytes(data[:-1])
    assert f"{shard.name}: has {len(data) - 1:,} bytes, the receipt says {len(data):,}" in refusal(merged)
    shard.unlink()
    assert f"{shard.name}: is missing" in refusal(merged)
    shard.write_bytes(data)
    (merged / "model.safetensors").write_bytes(data)
    assert "model.safetensors: holds weights that are not of this merge" in refusal(merged)
    with pytest.raises(OutputError, match="is not a merged model"):
        dopkit.push(tmp_path, REPO)
    assert not hub.requests("POST ")


# Misfortunes


@pytest.mark.parametrize(
    "match",
    [
        "GET /api/models/ann/merged/revision",
        "GET /api/whoami",
        "POST /api/repos/create",
        "POST /branch/",
        "POST /preupload/",
        "POST /objects/batch",
        "PUT ",
        "POST /lfs-verify",
        "POST /api/validate-yaml",
        "POST /commit/",
    ],
)
@pytest.mark.parametrize("fault", ["503", "lost"])
def test_a_passing_fault_is_survived(hub: TestHub, merged: Path, match: str, fault: str) -> None:
    if fault == "503":
        hub.fail(match, 503, times=2)
    else:
        hub.lose_answer(match)
    done = dopkit.push(merged, REPO, PushOptions(revision="dev"))
    assert any(entry.faults for entry in hub.log)
    assert on_the_hub(hub, "dev") == files(merged)
    assert hub.commit(REPO, "dev").sha == done.commit
    assert len(repo(hub).commits) == 2  # the repository's own first one, and ours once


def test_the_servers_own_pace_is_kept(hub: TestHub, merged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    hub.fail(COMMIT, 429, retry_after=77)
    dopkit.push(merged, REPO)
    assert slept == [77]


def test_a_pull_request_whose_answer_was_lost_is_found(hub: TestHub, merged: Path) -> None:
    hub.create_repo(REPO, {})
    hub.lose_answer(COMMIT)
    done = dopkit.push(merged, REPO, PushOptions(create_pr=True))
    assert done.url.endswith("/discussions/1") and len(repo(hub).pulls) == 1


@pytest.mark.parametrize("match", ["PUT ", "POST /objects/batch", "POST /commit/", "POST /api/repos/create"])
def test_a_lasting_fault_is_said_and_the_next_push_continues(hub: TestHub, merged: Path, match: str) -> None:
    hub.fail(match, 503, times=None)
    text = refusal(merged)
    assert text.splitlines()[0] == "cannot push to ann/merged"
    assert "Running the same command again continues." in text
    hub.clear_faults()
    dopkit.push(merged, REPO)
    assert on_the_hub(hub) == files(merged)


def test_what_was_sent_is_not_sent_again(hub: TestHub, merged: Path) -> None:
    shards = [name for name in files(merged) if name.endswith(".safetensors")]
    hub.fail(UPLOADS, 403, skip=2, times=None)
    refusal(merged)
    assert set(hub.files(REPO)) == {".gitattributes"}
    hub.clear_faults()
    hub.clear_log()
    dopkit.push(merged, REPO)
    assert len(hub.requests(UPLOADS)) == len(shards) - 2
    hub.fail(COMMIT, 403)
    (merged / "config.json").write_text("{}")
    refusal(merged)


def test_a_repository_that_moved_is_left_alone(hub: TestHub, merged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.create_repo(REPO, {})
    send = dopkit.hub.Push.send

    def meanwhile(self: object, files: object) -> None:
        hub.upload(REPO, {"other.txt": b"by somebody"})
        send(self, files)  # type: ignore[arg-type]

    monkeypatch.setattr("dopkit.hub.Push.send", meanwhile)
    assert refusal(merged).splitlines() == [
        "ann/merged was changed by somebody else meanwhile; nothing was overwritten",
        "  Look at what is there now, then run the same command again.",
    ]
    assert hub.files(REPO) == {"other.txt": b"by somebody"}
    assert len(hub.requests(COMMIT)) == 1


def test_a_412_is_said_and_the_next_push_finishes(hub: TestHub, merged: Path) -> None:
    hub.conflict()
    assert "nothing was overwritten" in refusal(merged)
    dopkit.push(merged, REPO)
    assert on_the_hub(hub) == files(merged)


def test_the_tree_is_compared_afterwards(hub: TestHub, merged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hubserver import push
    from hubserver.store import Blob, regular_blob

    monkeypatch.setattr(push, "regular_blob", lambda data: regular_blob(data[:-1] + b"?"))
    text = refusal(merged)
    assert text.startswith("ann/merged does not hold what was pushed, in commit ")
    assert "config.json: is not what was sent" in text and ".safetensors:" not in text
    monkeypatch.undo()
    assert isinstance(hub.commit(REPO).files["config.json"], Blob)


def test_the_token_stands_nowhere(
    hub: TestHub, merged: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    token = hub.token("ann")
    with caplog.at_level(logging.DEBUG):
        dopkit.push(merged, REPO)
        hub.fail(COMMIT, 500, times=None)
        (merged / "config.json").write_text("{}")
        text = refusal(merged)
    assert token not in text + caplog.text + str(capfd.readouterr())
    written = [path for path in tmp_path.rglob("*") if path.is_file()] + [merged / "README.md"]
    assert all(token.encode() not in path.read_bytes() for path in written)
    assert all(token.encode() not in data for data in hub.files(REPO).values())
    assert all(not entry.auth for entry in hub.requests("* ", host="storage"))


# In processes of their own


def child(hub: TestHub, folder: Path, home: Path, xet: bool = False) -> subprocess.Popen[bytes]:
    environment = hub_environment(hub, home, token=hub.token("ann"), xet=xet)
    command = [sys.executable, "-m", "dopkit", "push", str(folder), REPO, "--quiet"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.mark.parametrize("moment", [UPLOADS, "POST /api/validate-yaml"], ids=["between-uploads", "before-the-commit"])
def test_a_killed_push_is_continued(hub: TestHub, merged: Path, tmp_path: Path, moment: str) -> None:
    shards = [name for name in files(merged) if name.endswith(".safetensors")]
    skipped = 1 if moment == UPLOADS else 0
    hub.slow(moment, 60, skip=skipped)
    with child(hub, merged, tmp_path / "killed") as pushing:
        deadline = time.monotonic() + 60
        while len(hub.requests(moment)) <= skipped and time.monotonic() < deadline:
            threading.Event().wait(0.01)
        pushing.kill()
    assert set(hub.files(REPO)) == {".gitattributes"}
    hub.clear_log()
    dopkit.push(merged, REPO)
    assert on_the_hub(hub) == files(merged)
    assert len(hub.requests(UPLOADS)) == (len(shards) - 1 if moment == UPLOADS else 0)


@pytest.mark.parametrize("server_has_xet", [True, False])
def test_a_client_with_xet(merged: Path, tmp_path: Path, server_has_xet: bool) -> None:
    """A Hub with Xet takes the files that way; to one without it they go in the older way."""
    pytest.importorskip("hf_xet")
    with TestHub(xet=server_has_xet) as hub:
        with child(hub, merged, tmp_path / "cache", xet=True) as pushing:
            output = pushing.communicate(timeout=60)[0].decode()
        assert pushing.returncode == 0, output
        assert on_the_hub(hub) == files(merged)
        assert bool(hub.requests(UPLOADS)) != server_has_xet
        assert hub.crashes == []


# Together with the merge


def test_a_run_that_pushes(hub: TestHub, llama: Path, tmp_path: Path) -> None:
    for name in ("base", "e0", "e1"):
        hub.add_folder(f"org/{name}", llama / name)
    recipe = dopkit.parse_recipe(RECIPE + f"repo_id: {REPO}\n")
    options = dopkit.Options(push=PushOptions())
    result = dopkit.run(recipe, tmp_path / "out", options)
    assert result.pushed is not None and result.pushed.commit == hub.commit(REPO).sha
    published = hub.files(REPO)
    assert tiny.weights(tmp_path / "out").items() <= published.items()
    assert "repo_id" not in published["dopkit_recipe.yaml"].decode()
    hub.clear_log()
    again = dopkit.run(recipe, tmp_path / "out", options)
    assert again.already_there and again.pushed and again.pushed.files == 0
    assert not hub.requests(UPLOADS) and not hub.requests(COMMIT)


class Watching(dopkit.Progress):
    """Remembers the stages, and how many uploads the server had seen when each began."""

    def __init__(self, hub: TestHub, interrupt_after: int = 1000) -> None:
        self.hub = hub
        self.uploads: dict[str, int] = {}
        self.left = interrupt_after

    def stage(self, text: str) -> None:
        self.uploads[text] = len(self.hub.requests(UPLOADS))

    def tensor_done(self, name: str) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def test_shards_are_uploaded_while_the_merge_goes_on(hub: TestHub, llama: Path, tmp_path: Path) -> None:
    for name in ("base", "e0", "e1"):
        hub.add_folder(f"org/{name}", llama / name)
    recipe = dopkit.parse_recipe(RECIPE)
    options = dopkit.Options(max_shard_size=5000, push=PushOptions(REPO))
    with pytest.raises(KeyboardInterrupt):
        dopkit.run(recipe, tmp_path / "out", options, Watching(hub, interrupt_after=15))
    watching = Watching(hub)
    dopkit.run(recipe, tmp_path / "out", options, watching)
    shards = len(list((tmp_path / "out").glob("*.safetensors")))
    assert shards > 3
    assert watching.uploads["looking at the folder and the repository"] == shards
    assert len(hub.requests(UPLOADS)) == shards  # each once, in both runs together
    assert len(hub.requests(COMMIT)) == 1
    assert tiny.weights(tmp_path / "out").items() <= hub.files(REPO).items()


def test_what_goes_wrong_while_merging_is_made_good_afterwards(hub: TestHub, llama: Path, tmp_path: Path) -> None:
    for name in ("base", "e0", "e1"):
        hub.add_folder(f"org/{name}", llama / name)
    hub.fail(UPLOADS, 403, times=2)
    options = dopkit.Options(max_shard_size=5000, push=PushOptions(REPO))
    dopkit.run(dopkit.parse_recipe(RECIPE), tmp_path / "out", options)
    assert tiny.weights(tmp_path / "out").items() <= hub.files(REPO).items()


# Streamed on both sides: a finished shard leaves the disk

FREED = dopkit.Options(max_shard_size=5000, stream=True, push=PushOptions(REPO))


@pytest.fixture
def sources(hub: TestHub, llama: Path) -> None:
    for name in ("base", "e0", "e1"):
        hub.add_folder(f"org/{name}", llama / name)


@pytest.fixture(scope="module")
def expected(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The weights that the same merge of local folders gives."""
    out = tmp_path_factory.mktemp("expected") / "out"
    dopkit.run(dopkit.parse_recipe(RECIPE.replace("org/", f"{llama}/")), out, dopkit.Options(max_shard_size=5000))
    return dict(tiny.weights(out))


def shards_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.safetensors"))


@pytest.mark.usefixtures("sources")
def test_never_more_than_two_shards_on_disk(hub: TestHub, tmp_path: Path, expected: dict[str, bytes]) -> None:
    most = []

    class Counting(dopkit.Progress):
        def tensor_done(self, name: str) -> None:
            most.append(len(shards_in(tmp_path / "out.partial")))

    result = dopkit.run(dopkit.parse_recipe(RECIPE), tmp_path / "out", FREED, Counting())
    assert len(expected) > 4 and max(most) <= 2
    assert shards_in(tmp_path / "out") == []
    assert expected.items() <= hub.files(REPO).items()
    assert result.receipt["verified"]["names"] == "all 21 tensors are there in the planned shape"
    assert len(hub.requests(UPLOADS)) == len(expected) - 1  # all but the index
    # Again: everything is there. Somewhere else: the bytes are not here. Without a push: they are made.
    hub.clear_log()
    again = dopkit.run(dopkit.parse_recipe(RECIPE), tmp_path / "out", FREED)
    assert again.already_there and again.pushed and again.pushed.files == 0
    assert not hub.requests(UPLOADS) and not hub.requests(COMMIT)
    with pytest.raises(OutputError, match="lacks weights, and ann/other does not have them"):
        dopkit.push(tmp_path / "out", "ann/other")
    dopkit.run(dopkit.parse_recipe(RECIPE), tmp_path / "out", dopkit.Options(max_shard_size=5000))
    assert tiny.weights(tmp_path / "out") == expected


def streamed_run(hub: TestHub, folder: Path, xet: bool = False) -> subprocess.Popen[bytes]:
    """``dopkit run --stream --push-to-hub`` in a process of its own."""
    (folder / "r.yaml").write_text(RECIPE)
    command = ["run", "r.yaml", "-o", "out", "--max-shard-size", "5000B", "--stream", "--push-to-hub", "-q"]
    environment = hub_environment(hub, folder / "home", token=hub.token("ann"), xet=xet)
    started = [sys.executable, "-m", "dopkit", *command, "--repo-id", REPO]
    return subprocess.Popen(started, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.mark.usefixtures("sources")
@pytest.mark.parametrize("moment", [UPLOADS, "POST /api/validate-yaml"], ids=["between-uploads", "before-the-commit"])
def test_a_killed_streamed_push_is_continued(
    hub: TestHub, tmp_path: Path, expected: dict[str, bytes], moment: str
) -> None:
    skipped = 2 if moment == UPLOADS else 0
    hub.slow(moment, 60, skip=skipped)
    with streamed_run(hub, tmp_path) as running:
        deadline = time.monotonic() + 60
        while len(hub.requests(moment)) <= skipped and time.monotonic() < deadline:
            threading.Event().wait(0.01)
        running.kill()
    assert set(hub.files(REPO)) == {".gitattributes"}
    hub.clear_log()
    result = dopkit.run(dopkit.load_recipe(tmp_path / "r.yaml"), tmp_path / "out", FREED)
    assert expected.items() <= hub.files(REPO).items()
    assert result.already_there == (moment != UPLOADS)
    assert len(hub.requests(UPLOADS)) == (len(expected) - 1 - skipped if moment == UPLOADS else 0)
    assert shards_in(tmp_path / "out") == []


def test_a_streamed_push_with_xet(llama: Path, tmp_path: Path, expected: dict[str, bytes]) -> None:
    pytest.importorskip("hf_xet")
    with TestHub(xet=True) as hub:
        for name in ("base", "e0", "e1"):
            hub.add_folder(f"org/{name}", llama / name)
        with streamed_run(hub, tmp_path, xet=True) as running:
            output = running.communicate(timeout=60)[0].decode()
        assert running.returncode == 0, output
        assert expected.items() <= hub.files(REPO).items()
        assert shards_in(tmp_path / "out") == [] and not hub.requests(UPLOADS)
        assert hub.crashes == []


@pytest.mark.usefixtures("sources")
def test_shards_that_the_hub_lost_are_made_again(hub: TestHub, tmp_path: Path, expected: dict[str, bytes]) -> None:
    recipe = dopkit.parse_recipe(RECIPE)
    with pytest.raises(KeyboardInterrupt):
        dopkit.run(recipe, tmp_path / "out", FREED, Watching(hub, interrupt_after=19))
    assert repo(hub).objects
    repo(hub).objects.clear()
    dopkit.run(recipe, tmp_path / "out", FREED)
    assert expected.items() <= hub.files(REPO).items()


@pytest.mark.usefixtures("sources")
def test_an_upload_that_fails_keeps_its_shard(hub: TestHub, tmp_path: Path, expected: dict[str, bytes]) -> None:
    recipe = dopkit.parse_recipe(RECIPE)
    hub.fail(UPLOADS, 403, skip=1, times=None)
    with pytest.raises(HubError, match="cannot push to ann/merged"):
        dopkit.run(recipe, tmp_path / "out", FREED)
    assert shards_in(tmp_path / "out.partial")
    hub.clear_faults()
    hub.clear_log()
    dopkit.run(recipe, tmp_path / "out", FREED)
    assert expected.items() <= hub.files(REPO).items()
    assert len(hub.requests(UPLOADS)) == len(expected) - 2


def test_a_push_that_cannot_be_is_refused_before_the_merge(hub: TestHub, llama: Path, tmp_path: Path) -> None:
    hub.create_repo(REPO, {"model.safetensors": b"x"})
    recipe = dopkit.parse_recipe(f"merge_method: average\nmodels: [{llama}/e0, {llama}/e1]\n")
    with pytest.raises(DopkitError) as caught:
        dopkit.run(recipe, tmp_path / "out", dopkit.Options(push=PushOptions()))
    assert "there is no repository to push to" in str(caught.value)
    with pytest.raises(DopkitError) as caught:
        dopkit.run(recipe, tmp_path / "out", dopkit.Options(push=PushOptions(REPO)))
    assert "the recipe names local folders" in str(caught.value)
    assert "ann/merged holds files that dopkit did not make" in str(caught.value)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()
