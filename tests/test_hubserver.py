"""The test hub, driven by the real client: nothing of huggingface_hub is replaced here but its addresses.

python -m pytest tests/test_hubserver.py
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from hubserver import CLIENT_WARNING, TestHub, connect, hub_environment
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, HfFileSystem
from huggingface_hub import errors as hf_errors
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import get_session

pytestmark = pytest.mark.filterwarnings(CLIENT_WARNING)

REPO = "ann/model"


@pytest.fixture
def hub() -> Iterator[TestHub]:
    with TestHub() as hub:
        yield hub
        assert hub.crashes == []


@pytest.fixture
def api(hub: TestHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> HfApi:
    """The client as ann, who owns REPO."""
    connect(monkeypatch, hub, tmp_path / "home", token=hub.token("ann"))
    return HfApi()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses the client would have made between its attempts; it makes none."""
    from huggingface_hub import file_download
    from huggingface_hub.utils import _http

    pauses: list[float] = []
    clock = SimpleNamespace(sleep=pauses.append, time=time.time, monotonic=time.monotonic)
    monkeypatch.setattr(_http, "time", clock)
    monkeypatch.setattr(file_download, "time", clock)
    return pauses


def safetensors(names: list[str], count: int = 4) -> bytes:
    """A safetensors file of `count` float32 for each name: 0, 1, 2, ..."""
    import struct

    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name in names:
        values = struct.pack(f"<{count}f", *range(count))
        header[name] = {
            "dtype": "F32",
            "shape": [count],
            "data_offsets": [len(data), len(data) + len(values)],
        }
        data += values
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


WEIGHTS = safetensors(["a", "b"])
CARD = b"""---
license: mit
library_name: transformers
tags: [dopkit, merge]
base_model: [x/one, x/two]
---
# A model
"""
FILES: dict[str, Any] = {
    "README.md": CARD,
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": WEIGHTS,
    "sub/notes.txt": b"hello",
}


# accounts and repos


def test_whoami_names_the_owner_of_the_token(hub: TestHub, api: HfApi) -> None:
    who = api.whoami()
    assert (who["name"], who["auth"]["accessToken"]["role"]) == ("ann", "write")
    with pytest.raises(hf_errors.HfHubHTTPError) as caught:
        HfApi(token="hf_nobody").whoami()
    assert caught.value.response.status_code == 401


def test_create_repo_twice_is_a_conflict_unless_asked_for(hub: TestHub, api: HfApi) -> None:
    assert api.create_repo(REPO) == f"{hub.endpoint}/{REPO}"
    assert api.list_repo_files(REPO) == [".gitattributes"]
    assert api.create_repo(REPO, exist_ok=True).repo_id == REPO
    with pytest.raises(hf_errors.HfHubHTTPError) as caught:
        api.create_repo(REPO)
    assert caught.value.response.status_code == 409
    assert api.create_repo("ann/hidden", private=True).repo_id == "ann/hidden"
    assert api.model_info("ann/hidden").private is True
    with pytest.raises(hf_errors.HfHubHTTPError) as caught:
        api.create_repo("bob/model")
    assert caught.value.response.status_code == 403


def test_settings_move_and_delete(hub: TestHub, api: HfApi) -> None:
    sha = hub.create_repo(REPO, FILES)
    api.update_repo_settings(REPO, private=True, gated="auto")
    info = api.model_info(REPO)
    assert (info.private, info.gated) == (True, "auto")
    api.move_repo(REPO, "ann/moved")
    assert api.model_info("ann/moved").sha == sha
    api.delete_repo("ann/moved")
    assert not api.repo_exists("ann/moved")


def test_an_old_name_leads_to_the_new_one(hub: TestHub, api: HfApi, tmp_path: Path) -> None:
    hub.create_repo("ann/old", FILES)
    hub.rename("ann/old", REPO)
    assert api.model_info("ann/old").id == REPO
    path = api.hf_hub_download("ann/old", "model.safetensors")
    assert Path(path).read_bytes() == WEIGHTS
    done = api.upload_file(path_or_fileobj=b"new", path_in_repo="new.txt", repo_id="ann/old")
    assert hub.commit(REPO).sha == done.oid
    assert hub.files(REPO)["new.txt"] == b"new"


def test_datasets_and_models_are_apart(hub: TestHub, api: HfApi) -> None:
    hub.create_repo("ann/data", {"x.bin": b"1234"}, kind="datasets")
    assert api.dataset_info("ann/data").id == "ann/data"
    path = api.hf_hub_download("ann/data", "x.bin", repo_type="dataset")
    assert Path(path).read_bytes() == b"1234"
    assert not api.repo_exists("ann/data")


# reading


def test_model_info_tells_card_sizes_and_hashes(hub: TestHub, api: HfApi) -> None:
    sha = hub.create_repo(REPO, FILES)
    info: Any = api.model_info(REPO, files_metadata=True)
    assert (info.id, info.author, info.sha, info.library_name) == (REPO, "ann", sha, "transformers")
    assert info.card_data.license == "mit"
    assert info.card_data.base_model == ["x/one", "x/two"]
    assert {"dopkit", "license:mit", "base_model:merge:x/one", "safetensors"} <= set(info.tags)
    siblings = {file.rfilename: file for file in info.siblings}
    assert {name: file.size for name, file in siblings.items()} == {n: len(d) for n, d in FILES.items()}
    assert siblings["model.safetensors"].lfs.sha256 == sha256(WEIGHTS)
    assert siblings["config.json"].lfs is None
    # git's own name for "hello": git hash-object
    assert siblings["sub/notes.txt"].blob_id == "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0"
    assert api.model_info(REPO, expand=["likes"]).siblings is None


def test_tree_paths_and_pages(hub: TestHub, api: HfApi) -> None:
    sha = hub.create_repo(REPO, FILES)
    top = {item.path: type(item).__name__ for item in api.list_repo_tree(REPO)}
    assert top == {
        "README.md": "RepoFile",
        "config.json": "RepoFile",
        "model.safetensors": "RepoFile",
        "sub": "RepoFolder",
    }
    assert [item.path for item in api.list_repo_tree(REPO, "sub")] == ["sub/notes.txt"]
    hub.settings.page_size = 2
    hub.clear_log()
    everything: list[Any] = list(api.list_repo_tree(REPO, recursive=True, expand=True))
    assert len(hub.requests("GET /tree/")) == 3
    assert [item.path for item in everything] == [
        "README.md",
        "config.json",
        "model.safetensors",
        "sub",
        "sub/notes.txt",
    ]
    assert everything[0].last_commit.oid == sha
    chosen: list[Any] = api.get_paths_info(REPO, ["model.safetensors", "sub", "absent"])
    assert [item.path for item in chosen] == ["model.safetensors", "sub"]
    assert (chosen[0].size, chosen[0].lfs.sha256) == (len(WEIGHTS), sha256(WEIGHTS))
    with pytest.raises(hf_errors.RemoteEntryNotFoundError):
        list(api.list_repo_tree(REPO, "absent"))


def test_branches_tags_and_history(hub: TestHub, api: HfApi) -> None:
    first = hub.create_repo(REPO, FILES)
    api.create_tag(REPO, tag="v1")
    api.create_branch(REPO, branch="wip")
    api.create_branch(REPO, branch="wip", exist_ok=True)
    second = hub.upload(REPO, {"sub/notes.txt": b"bye"}, branch="wip", title="Say bye")
    refs = api.list_repo_refs(REPO)
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": first, "wip": second}
    assert {ref.ref: ref.target_commit for ref in refs.tags} == {"refs/tags/v1": first}
    assert [(c.commit_id, c.title) for c in api.list_repo_commits(REPO, revision="wip")] == [
        (second, "Say bye"),
        (first, "initial commit"),
    ]
    for revision, text in (("main", b"hello"), ("v1", b"hello"), ("wip", b"bye"), (second, b"bye")):
        path = api.hf_hub_download(REPO, "sub/notes.txt", revision=revision)
        assert Path(path).read_bytes() == text, revision
    assert api.resolve_revision(REPO, revision="wip").resolved == second
    api.delete_branch(REPO, branch="wip")
    api.delete_tag(REPO, tag="v1")
    assert list(hub.site.store.repos["models", REPO].refs) == ["refs/heads/main"]


@pytest.mark.parametrize("resolve_cache", [False, True])
def test_snapshot_is_the_repo(hub: TestHub, api: HfApi, resolve_cache: bool) -> None:
    hub.settings.resolve_cache = resolve_cache
    sha = hub.create_repo(REPO, FILES)
    folder = Path(api.snapshot_download(REPO))
    assert folder.name == sha
    paths = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths} == FILES
    hub.clear_log()
    api.snapshot_download(REPO, revision=sha)
    assert hub.log == []


def test_safetensors_headers_single_and_sharded(hub: TestHub, api: HfApi) -> None:
    hub.create_repo(REPO, FILES)
    single = api.get_safetensors_metadata(REPO)
    assert (single.sharded, set(single.weight_map)) == (False, {"a", "b"})
    assert single.files_metadata["model.safetensors"].tensors["b"].data_offsets == (16, 32)
    index = {"metadata": {"total_size": 64}, "weight_map": {"a": "m-1.safetensors", "c": "m-2.safetensors"}}
    shards = {"m-1.safetensors": safetensors(["a"]), "m-2.safetensors": safetensors(["c"])}
    hub.create_repo("ann/two", {**shards, "model.safetensors.index.json": json.dumps(index).encode()})
    for found in (api.get_safetensors_metadata("ann/two"), api.get_sharded_safetensors_metadata("ann/two")):
        assert (found.sharded, found.weight_map) == (True, index["weight_map"])
        assert found.files_metadata["m-2.safetensors"].tensors["c"].shape == [4]
    assert not any(entry.auth for entry in hub.requests(host="storage"))
    hub.create_repo("ann/none", {"x": b""})
    with pytest.raises(hf_errors.NotASafetensorsRepoError):
        api.get_safetensors_metadata("ann/none")


def ranged(repo: str, name: str, wanted: str) -> Any:
    url = huggingface_hub.hf_hub_url(repo, name)
    return get_session().get(url, headers={**build_hf_headers(), "Range": wanted}, timeout=5)


@pytest.mark.parametrize("name", ["large.bin", "small.txt"])
@pytest.mark.parametrize(
    "wanted, stretch",
    [
        ("bytes=10-19", (10, 20)),
        ("bytes=990-", (990, 1000)),
        ("bytes=-5", (995, 1000)),
        ("bytes=0-5000", (0, 1000)),
    ],
)
def test_a_range_is_exact_and_the_token_stays_home(
    hub: TestHub, api: HfApi, name: str, wanted: str, stretch: tuple[int, int]
) -> None:
    data = bytes(range(250)) * 4
    hub.create_repo(REPO, {name: data})
    answer = ranged(REPO, name, wanted)
    assert answer.status_code == 206
    assert answer.content == data[slice(*stretch)]
    assert answer.headers["Content-Range"] == f"bytes {stretch[0]}-{stretch[1] - 1}/1000"
    last = hub.log[-1]
    assert (last.range, last.sent) == (wanted, stretch[1] - stretch[0])
    if name == "large.bin":
        assert [(e.host, e.auth, e.status) for e in hub.log] == [("hub", True, 302), ("storage", False, 206)]
    else:
        assert [(e.host, e.auth, e.status) for e in hub.log] == [("hub", True, 206)]
    assert ranged(REPO, name, "bytes=1000-").status_code == 416


def test_file_system_reads_a_stretch(hub: TestHub, api: HfApi) -> None:
    data = bytes(range(256)) * 40
    hub.create_repo(REPO, {"w.bin": data})
    with HfFileSystem().open(f"{REPO}/w.bin", cache_type="none") as stream:
        stream.seek(5000)
        assert stream.read(300) == data[5000:5300]
    assert hub.requests("GET ", host="storage")[-1].sent == 300


def test_large_files_are_served_from_where_they_lie(hub: TestHub, api: HfApi, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    data = bytes(1000) + b"end" * 1_000_000
    (folder / "big.bin").write_bytes(data)
    (folder / "config.json").write_bytes(b"{}")
    hub.add_folder(REPO, folder)
    blob = hub.commit(REPO).files["big.bin"]
    assert (blob.path, blob.data, blob.sha256) == (folder / "big.bin", None, sha256(data))
    path = api.hf_hub_download(REPO, "big.bin")
    assert Path(path).read_bytes() == data
    assert hub.requests("GET /objects/.*filename=big.bin")[0].sent == len(data)
    assert ranged(REPO, "big.bin", "bytes=1000-1005").content == b"endend"


# writing


def test_upload_folder_and_again_for_nothing(hub: TestHub, api: HfApi, tmp_path: Path) -> None:
    for name, data in FILES.items():
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_bytes(data)
    api.create_repo(REPO)
    done = api.upload_folder(repo_id=REPO, folder_path=tmp_path / "out")
    assert hub.commit(REPO).sha == done.oid
    assert done.commit_url == f"{hub.endpoint}/{REPO}/commit/{done.oid}"
    stored = hub.files(REPO)
    assert {name: stored[name] for name in FILES} == FILES
    put = hub.requests("PUT ")
    assert [(e.host, e.auth, e.received) for e in put] == [("storage", False, len(WEIGHTS))]
    hub.clear_log()
    again = api.upload_folder(repo_id=REPO, folder_path=tmp_path / "out")
    assert again.oid == done.oid
    assert hub.requests("PUT ") == hub.requests("POST /commit/") == []


def test_shards_go_up_one_by_one_and_one_commit_names_them(hub: TestHub, api: HfApi, tmp_path: Path) -> None:
    api.create_repo(REPO)
    operations, shards = [], {f"m-{n}.safetensors": safetensors([f"t{n}"]) for n in range(3)}
    for name, data in shards.items():
        (tmp_path / name).write_bytes(data)
        operation = CommitOperationAdd(name, tmp_path / name)
        api.preupload_lfs_files(REPO, [operation])
        (tmp_path / name).unlink()
        operations.append(operation)
    assert set(hub.files(REPO)) == {".gitattributes"}
    api.create_commit(REPO, operations, commit_message="Add shards")
    assert {name: hub.files(REPO)[name] for name in shards} == shards
    assert len(hub.requests("POST /commit/main")) == 1
    # the same bytes again, as a run that was killed would send them: no PUT
    hub.clear_log()
    api.preupload_lfs_files(REPO, [CommitOperationAdd("m-0.safetensors", shards["m-0.safetensors"])])
    assert (len(hub.requests("POST /objects/batch")), hub.requests("PUT ")) == (1, [])


def test_what_was_not_received_cannot_be_committed(hub: TestHub, api: HfApi) -> None:
    first = hub.create_repo(REPO, {})
    operation = CommitOperationAdd("w.bin", b"1234")
    operation.upload_info.sha256 = bytes(32)  # announced wrongly
    with pytest.raises(RuntimeError, match="Error while uploading 'w.bin'") as caught:
        api.create_commit(REPO, [operation], commit_message="Wrong")
    assert "BadDigest: 4 bytes" in str(caught.value.__cause__)
    line = {"key": "lfsFile", "value": {"path": "w.bin", "oid": sha256(b"1234"), "size": 4}}
    header = {"key": "header", "value": {"summary": "Unseen"}}
    answer = get_session().post(
        f"{hub.endpoint}/api/models/{REPO}/commit/main",
        content="\n".join([json.dumps(header), json.dumps(line)]),
        headers=build_hf_headers(),
    )
    assert (answer.status_code, hub.commit(REPO).sha) == (400, first)
    assert list(hub.folder.iterdir()) == []


def test_multipart_upload(hub: TestHub, api: HfApi, tmp_path: Path) -> None:
    hub.settings.multipart_over, hub.settings.part_size = 100_000, 40_000
    data = bytes(range(250)) * 600  # 150,000 bytes: parts of 40, 40, 40 and 30 thousand
    (tmp_path / "w.bin").write_bytes(data)
    api.create_repo(REPO)
    api.upload_file(path_or_fileobj=tmp_path / "w.bin", path_in_repo="w.bin", repo_id=REPO)
    assert hub.files(REPO)["w.bin"] == data
    assert [entry.received for entry in hub.requests("PUT ")] == [40_000, 40_000, 40_000, 30_000]
    assert [entry.auth for entry in hub.requests("PUT |POST /complete-multipart/")] == [False] * 4
    assert [entry.auth for entry in hub.requests("POST /complete-multipart/")] == [False]


def test_deletions(hub: TestHub, api: HfApi) -> None:
    hub.create_repo(REPO, FILES)
    api.create_commit(
        REPO, [CommitOperationDelete("config.json"), CommitOperationDelete("sub/")], commit_message="Tidy"
    )
    assert set(hub.files(REPO)) == {"README.md", "model.safetensors"}
    with pytest.raises(hf_errors.RemoteEntryNotFoundError):
        api.delete_file("config.json", REPO)


def test_a_pull_request_leaves_main_alone_until_merged(hub: TestHub, api: HfApi) -> None:
    first = hub.create_repo(REPO, FILES)
    bob = HfApi(token=hub.token("bob"))  # no rights in ann's repo
    done = bob.upload_file(path_or_fileobj=b"mine", path_in_repo="bob.txt", repo_id=REPO, create_pr=True)
    assert (done.pr_num, done.pr_revision) == (1, "refs/pr/1")
    assert done.pr_url == f"{hub.endpoint}/{REPO}/discussions/1"
    assert (hub.commit(REPO).sha, hub.commit(REPO, "refs/pr/1").sha) == (first, done.oid)
    refs: Any = api.list_repo_refs(REPO, include_pull_requests=True)
    assert [ref.ref for ref in refs.pull_requests] == ["refs/pr/1"]
    details = api.get_discussion_details(REPO, 1)
    assert (details.author, details.status, details.target_branch) == ("bob", "open", "refs/heads/main")
    assert [found.num for found in api.get_repo_discussions(REPO)] == [1]
    path = api.hf_hub_download(REPO, "bob.txt", revision="refs/pr/1")
    assert Path(path).read_bytes() == b"mine"
    api.upload_file(path_or_fileobj=b"more", path_in_repo="b.txt", repo_id=REPO, revision="refs/pr/1")
    hub.merge(REPO, 1)
    assert (hub.files(REPO)["bob.txt"], hub.files(REPO)["b.txt"]) == (b"mine", b"more")
    assert api.create_pull_request(REPO, title="Second").num == 2
    with pytest.raises(hf_errors.HfHubHTTPError) as caught:
        bob.upload_file(path_or_fileobj=b"mine", path_in_repo="bob.txt", repo_id=REPO)
    assert caught.value.response.status_code == 403


def test_a_commit_on_an_old_parent_is_refused(hub: TestHub, api: HfApi) -> None:
    first = hub.create_repo(REPO, FILES)
    second = hub.upload(REPO, {"other.txt": b"1"})
    operation = CommitOperationAdd("mine.txt", b"2")
    with pytest.raises(hf_errors.HfHubHTTPError) as caught:
        api.create_commit(REPO, [operation], commit_message="Mine", parent_commit=first)
    assert caught.value.response.status_code == 412
    assert hub.commit(REPO).sha == second
    done = api.create_commit(REPO, [operation], commit_message="Mine", parent_commit=second)
    assert hub.commit(REPO).parent == second
    assert hub.commit(REPO).sha == done.oid


def test_a_card_that_is_not_yaml_is_refused_before_any_upload(hub: TestHub, api: HfApi) -> None:
    hub.create_repo(REPO, FILES)
    with pytest.raises(ValueError, match="Invalid metadata in README.md"):
        api.upload_file(path_or_fileobj=b"---\na: [\n---\n", path_in_repo="README.md", repo_id=REPO)
    assert hub.files(REPO)["README.md"] == CARD


def test_a_body_in_chunks_is_read_and_the_connection_kept(hub: TestHub, api: HfApi) -> None:
    text = json.dumps({"content": CARD.decode(), "repoType": "model"}).encode()
    for _ in range(2):
        parts = iter([text[:10], text[10:11], text[11:]])
        answer = get_session().post(f"{hub.endpoint}/api/validate-yaml", content=parts, timeout=5)
        assert answer.json() == {"errors": [], "warnings": []}
    assert [entry.received for entry in hub.log] == [len(text)] * 2
    assert get_session().get(f"{hub.endpoint}/nothing/here").status_code == 404


def test_commits_at_once_all_arrive(hub: TestHub, api: HfApi) -> None:
    hub.create_repo(REPO, {})

    def push(n: int) -> str:
        return str(api.upload_file(path_or_fileobj=b"%d" % n, path_in_repo=f"{n}.bin", repo_id=REPO).oid)

    with ThreadPoolExecutor(8) as pool:
        shas = list(pool.map(push, range(16)))
    assert hub.files(REPO) == {f"{n}.bin": b"%d" % n for n in range(16)}
    assert len({commit.commit_id for commit in api.list_repo_commits(REPO)} & set(shas)) == 16


# who may


@pytest.mark.parametrize(
    "call, error",
    [
        (lambda api: api.model_info("ann/none"), hf_errors.RepositoryNotFoundError),
        (lambda api: api.hf_hub_download("ann/none", "x"), hf_errors.RepositoryNotFoundError),
        (lambda api: api.model_info(REPO, revision="none"), hf_errors.RevisionNotFoundError),
        (lambda api: api.hf_hub_download(REPO, "x", revision="none"), hf_errors.RevisionNotFoundError),
        (lambda api: api.hf_hub_download(REPO, "none"), hf_errors.RemoteEntryNotFoundError),
        (lambda api: api.model_info("ann/private"), hf_errors.RepositoryNotFoundError),
        (lambda api: api.hf_hub_download("ann/private", "x.txt"), hf_errors.RepositoryNotFoundError),
        (lambda api: api.hf_hub_download("ann/gated", "x.txt"), hf_errors.GatedRepoError),
        (lambda api: api.auth_check("ann/gated"), hf_errors.GatedRepoError),
    ],
)
@pytest.mark.parametrize("who", ["bob", None])
def test_refusals_reach_the_right_exception(
    hub: TestHub,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    who: str | None,
    call: Callable[[HfApi], Any],
    error: type[Exception],
) -> None:
    connect(monkeypatch, hub, tmp_path / "home", token=hub.token(who) if who else None)
    hub.create_repo(REPO, FILES)
    hub.create_repo("ann/private", {"x.txt": b"x"}, private=True)
    hub.create_repo("ann/gated", {"x.txt": b"x"}, gated=True)
    with pytest.raises(error) as caught:
        call(HfApi())
    assert type(caught.value) is error
    assert [entry.auth for entry in hub.log] == [who is not None]


def test_owner_and_invited_get_in(hub: TestHub, api: HfApi) -> None:
    hub.create_repo("ann/private", {"x.txt": b"p"}, private=True)
    hub.create_repo("ann/gated", {"x.bin": b"g"}, gated="manual")
    bob = HfApi(token=hub.token("bob"))
    assert bob.model_info("ann/gated").gated == "manual"  # the card is open, the files are not
    for repo in ("ann/private", "ann/gated"):
        hub.grant(repo, "bob")
    for client in (api, bob):
        assert Path(client.hf_hub_download("ann/private", "x.txt")).read_bytes() == b"p"
        assert Path(client.hf_hub_download("ann/gated", "x.bin", force_download=True)).read_bytes() == b"g"
    reader = HfApi(token=hub.token("ann", role="read"))
    with pytest.raises(hf_errors.HfHubHTTPError) as caught:
        reader.upload_file(path_or_fileobj=b"x", path_in_repo="y", repo_id="ann/private")
    assert caught.value.response.status_code == 403


# misfortunes


def test_503_is_met_with_a_second_try(hub: TestHub, api: HfApi, waits: list[float]) -> None:
    hub.create_repo(REPO, FILES)
    hub.fail(r"GET /tree/", 503, times=2)
    assert len(list(api.list_repo_tree(REPO))) == 4
    assert [entry.status for entry in hub.requests("GET /tree/")] == [503, 503, 200]
    hub.fail(r"GET /tree/", 503, retry_after=7)
    list(api.list_repo_tree(REPO))
    assert waits == [1, 2, 8]  # its own 1 and 2, then what it was told and a second more


def test_a_failed_commit_is_not_tried_again(hub: TestHub, api: HfApi, waits: list[float]) -> None:
    first = hub.create_repo(REPO, FILES)
    hub.fail("POST /commit/", 503)
    with pytest.raises(hf_errors.HfHubHTTPError) as caught:
        api.upload_file(path_or_fileobj=b"1", path_in_repo="1.txt", repo_id=REPO)
    assert caught.value.response.status_code == 503
    assert (hub.commit(REPO).sha, len(hub.requests("POST /commit/")), waits) == (first, 1, [])


def test_a_lost_answer_hides_a_commit_that_happened(hub: TestHub, api: HfApi) -> None:
    first = hub.create_repo(REPO, FILES)
    hub.lose_answer("POST /commit/")
    operation = CommitOperationAdd("1.txt", b"1")
    with pytest.raises(Exception, match="disconnected") as caught:
        api.create_commit(REPO, [operation], commit_message="One", parent_commit=first)
    assert type(caught.value).__name__ == "RemoteProtocolError"
    assert (hub.commit(REPO).parent, hub.files(REPO)["1.txt"]) == (first, b"1")
    assert hub.requests("POST /commit/")[0].faults == ("lose",)


def test_conflict_on_demand(hub: TestHub, api: HfApi) -> None:
    first = hub.create_repo(REPO, FILES)
    hub.conflict()
    with pytest.raises(hf_errors.HfHubHTTPError, match="A commit has happened since"):
        api.upload_file(path_or_fileobj=b"1", path_in_repo="1.txt", repo_id=REPO)
    assert hub.commit(REPO).sha == first


def test_a_cut_download_is_resumed_where_it_broke(
    hub: TestHub, api: HfApi, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    # the client keeps whole chunks only, and they are of 10 MiB
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 100_000)
    data = bytes(range(256)) * 4000
    hub.create_repo(REPO, {"w.bin": data})
    hub.cut("GET /objects/", after_bytes=350_000)
    assert Path(api.hf_hub_download(REPO, "w.bin")).read_bytes() == data
    got = hub.requests("GET /objects/")
    assert [(e.range, e.status, e.sent) for e in got] == [
        (None, 200, 350_000),
        ("bytes=300000-", 206, len(data) - 300_000),
    ]


def test_a_cut_upload_leaves_nothing_and_is_sent_again(
    hub: TestHub, api: HfApi, waits: list[float], tmp_path: Path
) -> None:
    data = bytes(range(256)) * 40_000
    (tmp_path / "w.bin").write_bytes(data)
    hub.create_repo(REPO, {})
    hub.cut("PUT /upload/", after_bytes=100_000)
    api.upload_file(path_or_fileobj=tmp_path / "w.bin", path_in_repo="w.bin", repo_id=REPO)
    assert hub.files(REPO)["w.bin"] == data
    assert [entry.received for entry in hub.requests("PUT ")] == [100_000, len(data)]
    assert len(list(hub.folder.glob("*"))) == 1 + 1  # the object, and the draft that was dropped


@pytest.mark.parametrize("by", [-7, 7])
def test_an_answer_of_the_wrong_length_looks_well(hub: TestHub, api: HfApi, by: int) -> None:
    data = bytes(range(1, 201))
    hub.create_repo(REPO, {"w.bin": data})
    hub.wrong_length("GET /objects/", by=by)
    answer = ranged(REPO, "w.bin", "bytes=0-99")
    assert (answer.status_code, len(answer.content)) == (206, 100 + by)
    assert answer.content == (data[:100] + bytes(7))[: 100 + by]
    hub.wrong_length("GET /objects/", by=by)
    with pytest.raises(OSError, match="Consistency check failed"):
        api.hf_hub_download(REPO, "w.bin")


def test_a_range_ignored(hub: TestHub, api: HfApi) -> None:
    hub.create_repo(REPO, {"w.bin": bytes(500)})
    hub.whole("GET /objects/")
    answer = ranged(REPO, "w.bin", "bytes=0-99")
    assert (answer.status_code, len(answer.content)) == (200, 500)
    assert ranged(REPO, "w.bin", "bytes=0-99").status_code == 206


def test_slow_answers(hub: TestHub, api: HfApi) -> None:
    hub.create_repo(REPO, {"w.bin": bytes(500)})
    hub.slow("GET /objects/", 0.2)
    start = time.monotonic()
    assert ranged(REPO, "w.bin", "bytes=0-99").status_code == 206
    assert 0.2 <= time.monotonic() - start < 5
    hub.slow("GET /objects/", 0.05, every=100)
    start = time.monotonic()
    assert ranged(REPO, "w.bin", "bytes=0-399").content == bytes(400)
    assert 0.2 <= time.monotonic() - start < 5
    hub.slow("GET /api/models/", 30)
    with pytest.raises(Exception, match="timed out"):
        api.model_info(REPO, timeout=0.1)


def test_skip_lets_the_first_ones_pass(hub: TestHub, api: HfApi, waits: list[float]) -> None:
    hub.create_repo(REPO, FILES)
    hub.fail("GET /tree/", 500, skip=1)
    for _ in range(2):
        list(api.list_repo_tree(REPO))
    assert [entry.status for entry in hub.requests("GET /tree/")] == [200, 500, 200]
    hub.fail("GET /tree/", 404, times=None, code="RepoNotFound")
    for _ in range(3):
        with pytest.raises(hf_errors.RepositoryNotFoundError):
            list(api.list_repo_tree(REPO))
    hub.clear_faults()
    assert len(list(api.list_repo_tree(REPO))) == 4


def test_rate_limit(hub: TestHub, api: HfApi, waits: list[float]) -> None:
    hub.create_repo(REPO, FILES)
    hub.rate_limit(2, window=60, match="GET /api/")
    assert [api.model_info(REPO).id for _ in range(2)] == [REPO, REPO]
    told = r"reached your 'api' rate limit.\nRetry after 60"
    with pytest.raises(hf_errors.HfHubHTTPError, match=told) as caught:
        api.model_info(REPO)
    assert caught.value.response.headers["Retry-After"] == "60"
    with pytest.raises(hf_errors.HfHubHTTPError):
        list(api.list_repo_tree(REPO))
    assert waits == [61] * 5
    hub.clear_faults()
    hub.rate_limit(1, window=0.2, match="GET /api/")
    api.model_info(REPO)
    time.sleep(0.25)
    assert api.model_info(REPO).id == REPO


def test_signed_addresses_expire(hub: TestHub, api: HfApi) -> None:
    hub.create_repo(REPO, {"w.bin": bytes(500)})

    def address() -> str:
        return str(huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(REPO, "w.bin")).location)

    old = address()
    assert old.startswith(hub.storage_endpoint)
    assert len(get_session().get(old).content) == 500
    assert get_session().get(old, headers=build_hf_headers()).status_code == 400  # storage wants no token
    hub.expire_links()
    assert get_session().get(old).status_code == 403
    assert get_session().get(address()).status_code == 200
    assert get_session().get(address().replace("models/ann", "models/bob")).status_code == 403
    hub.settings.link_seconds = -1
    assert get_session().get(address()).status_code == 403


def test_down(hub: TestHub, api: HfApi, waits: list[float]) -> None:
    sha = hub.create_repo(REPO, FILES)
    api.snapshot_download(REPO)
    with hub.down():
        assert api.resolve_revision(REPO).resolved == sha  # from the client's cache
        with pytest.raises(hf_errors.HfHubHTTPError):
            api.model_info(REPO)
    assert api.model_info(REPO).sha == sha


# search


def test_search(hub: TestHub, api: HfApi) -> None:
    models = {"a/merge-one": "dopkit", "b/merge-two": "dopkit, vision", "b/other": "x"}
    for n, (name, tags) in enumerate(models.items()):
        hub.create_repo(name, {"README.md": f"---\ntags: [{tags}]\nlicense: mit\n---\n".encode()})
        hub.set(name, likes=n, downloads=10 - n, modified=datetime(2026, 1, 1 + n % 2, tzinfo=UTC))
    hub.create_repo("c/hidden", {"README.md": b"---\ntags: [dopkit]\n---\n"}, private=True)

    def ids(**query: Any) -> list[str]:
        return [info.id for info in api.list_models(**query)]

    assert ids(filter="dopkit") == ["b/merge-two", "a/merge-one"]
    assert ids(filter=["dopkit", "vision"]) == ["b/merge-two"]
    assert ids(search="MERGE", sort="downloads") == ["a/merge-one", "b/merge-two"]
    assert ids(author="b", sort="likes") == ["b/other", "b/merge-two"]
    assert ids(sort="last_modified", limit=1) == ["b/merge-two"]
    assert ids(filter="license:mit", sort="likes", limit=2) == ["b/other", "b/merge-two"]
    hub.settings.page_size = 1
    assert len(ids(filter="license:mit")) == 3
    found: Any = next(iter(api.list_models(filter="dopkit", cardData=True, full=True)))
    assert (found.likes, found.card_data.tags, found.last_modified) == (
        1,
        ["dopkit", "vision"],
        datetime(2026, 1, 2, tzinfo=UTC),
    )
    hub.set("a/merge-one", gated=True)
    assert ids(gated=True) == ["a/merge-one"]


# clients


def test_a_child_process_needs_only_its_environment(hub: TestHub, tmp_path: Path) -> None:
    hub.create_repo("ann/private", FILES, private=True)
    program = "import huggingface_hub as h; print(h.snapshot_download('ann/private'))"
    environment = hub_environment(hub, tmp_path / "home", token=hub.token("ann"))
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    folder = Path(done.stdout.strip())
    assert folder.is_relative_to(tmp_path / "home" / "hub")
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


LEFT_OVER = """
import os, sys, pytest
os.environ |= {"HF_ENDPOINT": "http://old.example", "HF_HOME": "/old-home", "HF_HUB_DISABLE_TELEMETRY": "1"}
import huggingface_hub, huggingface_hub.hf_file_system, huggingface_hub.cli.auth, huggingface_hub.repocard
from types import SimpleNamespace
from hubserver import connect
connect(pytest.MonkeyPatch(), SimpleNamespace(endpoint="http://127.0.0.1:1"), "/new-home")
for name, module in sorted(sys.modules.items()):
    if name.startswith("huggingface_hub"):
        for key, value in vars(module).items():
            if key.startswith("__") or callable(value) or isinstance(value, type(sys)):
                continue
            plain = isinstance(value, (str, tuple, dict, frozenset))
            seen = repr(value if plain else getattr(value, "__dict__", ""))
            if "old.example" in seen or "old-home" in seen:
                print(name, key)
"""


def test_connect_leaves_no_old_address_behind(tmp_path: Path) -> None:
    """Whatever module made something of the old endpoint or home, it was patched, or is not read again."""
    (tmp_path / "scan.py").write_text(LEFT_OVER)
    environment = hub_environment(SimpleNamespace(endpoint="x"), tmp_path)
    environment["PYTHONPATH"] = str(Path(__file__).parent)
    command = [sys.executable, str(tmp_path / "scan.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.split("\n")[:-1] == [
        "huggingface_hub.constants HF_URL_HOSTS",  # the new host is added to it
        "huggingface_hub.constants default_cache_path",
        "huggingface_hub.constants default_assets_cache_path",
        "huggingface_hub.constants default_xet_cache_path",
        "huggingface_hub.utils._http _HUB_ORIGINS",  # likewise
    ]


def test_module_level_functions_follow_connect(hub: TestHub, api: HfApi) -> None:
    sha = hub.create_repo(REPO, FILES)
    assert huggingface_hub.whoami()["name"] == "ann"
    assert huggingface_hub.model_info(REPO).sha == sha
    assert Path(huggingface_hub.hf_hub_download(REPO, "config.json")).read_bytes() == FILES["config.json"]
    assert huggingface_hub.hffs.cat_file(f"{REPO}/sub/notes.txt") == b"hello"
    assert huggingface_hub.ModelCard.load(REPO).data.license == "mit"


def test_closing_frees_the_ports_and_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with TestHub() as hub:
        connect(monkeypatch, hub, tmp_path)
        hub.create_repo(REPO, FILES)
        assert HfApi().model_info(REPO).id == REPO
        hub.slow("GET ", 60)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(HfApi().model_info, REPO)
            while len(hub.log) < 2:
                time.sleep(0.01)
            hub.close()
            assert waiting.exception() is not None
    assert not hub.folder.exists()
    with pytest.raises(Exception, match="refused"):
        get_session().get(hub.endpoint)


UP = """
import huggingface_hub as h, sys
api = h.HfApi()
api.create_repo("ann/model")
api.upload_folder(repo_id="ann/model", folder_path=sys.argv[1])
print(api.upload_file(path_or_fileobj=sys.argv[1] + "/w.bin", path_in_repo="w.bin", repo_id="ann/model").oid)
"""
DOWN = "import huggingface_hub as h; print(h.snapshot_download('ann/model'))"


def test_xet_by_a_folder_in_common(tmp_path: Path) -> None:
    """With Xet on, no weight goes through a port; without, the same repo is served as ever."""
    pytest.importorskip("hf_xet")
    folder = tmp_path / "out"
    folder.mkdir()
    data = bytes(range(256)) * 500
    (folder / "w.bin").write_bytes(data)
    (folder / "config.json").write_bytes(b"{}")
    with TestHub(xet=True) as hub:

        def child(program: str, home: str, xet: bool) -> str:
            environment = hub_environment(hub, tmp_path / home, token=hub.token("ann"), xet=xet)
            command = [sys.executable, "-c", program, str(folder)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            return done.stdout.strip()

        assert child(UP, "a", xet=True) == hub.commit(REPO).sha
        assert hub.files(REPO)["w.bin"] == data
        assert hub.requests("PUT ") == hub.requests("POST /objects/batch") == []
        for home, xet in (("b", True), ("c", False)):
            hub.clear_log()
            assert (Path(child(DOWN, home, xet)) / "w.bin").read_bytes() == data
            assert sum(entry.sent for entry in hub.requests(host="storage")) == (0 if xet else len(data))
        assert hub.crashes == []


@pytest.mark.slow
def test_transformers_loads_a_model(hub: TestHub, api: HfApi) -> None:
    """from_pretrained reads the config, the index, both shards and nothing twice."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    from safetensors.torch import save

    config = transformers.LlamaConfig(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
    )
    weights = transformers.LlamaForCausalLM(config).state_dict()
    names = sorted(weights)
    halves = [names[::2], names[1::2]]
    shards = {f"model-{n}.safetensors": half for n, half in enumerate(halves)}
    files = {name: save({key: weights[key] for key in half}) for name, half in shards.items()}
    weight_map = {key: name for name, half in shards.items() for key in half}
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    files["config.json"] = config.to_json_string(use_diff=False).encode()
    hub.create_repo(REPO, files)
    model = transformers.AutoModelForCausalLM.from_pretrained(REPO)
    loaded = model.state_dict()
    assert all(torch.equal(loaded[name], weights[name]) for name in names)
    assert [entry.auth for entry in hub.requests("GET ", host="storage")] == [False, False]
