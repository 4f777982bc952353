"""Unit tests for dopkit.hub, through the real client against a server on loopback."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hubserver import TestHub, connect

from dopkit import hub, refs
from dopkit.errors import HubError
from dopkit.refs import ModelRef

DATA = bytes(range(256)) * 4096  # 1 MiB
STORAGE = "GET expires"  # the address of a large file's bytes


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[TestHub]:
    with TestHub() as server:
        connect(monkeypatch, server, tmp_path / "cache")
        yield server
        assert server.crashes == []


@pytest.fixture
def model(server: TestHub) -> ModelRef:
    """``user/model``, pinned, with a config and 1 MiB of weights."""
    server.create_repo("user/model", {"config.json": b"{}", "model.safetensors": DATA})
    return hub.pin(parse("user/model"))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    return lambda: monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client waits seconds between its tries."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)


def parse(text: str) -> ModelRef:
    return refs.parse(text, Path())


def refusal(call: Callable[..., Any], *arguments: Any) -> list[str]:
    with pytest.raises(HubError) as caught:
        call(*arguments)
    return str(caught.value).splitlines()


# Revisions


def test_a_branch_a_tag_and_a_commit_are_pinned(server: TestHub) -> None:
    first = server.create_repo("user/model", {"config.json": b"{}"})
    server.tag("user/model", "v1")
    second = server.upload("user/model", {"config.json": b"[]"})
    branch = server.upload("user/model", {"config.json": b"1"}, branch="feature/x")
    pins = {
        text: hub.pin(parse(text))
        for text in ("user/model", "user/model@main", "user/model@v1", "user/model@feature/x")
    }
    assert {text: pin.revision for text, pin in pins.items()} == {
        "user/model": second,
        "user/model@main": second,
        "user/model@v1": first,
        "user/model@feature/x": branch,
    }
    assert pins["user/model"] == ModelRef(f"user/model@{second}", "user/model", second)


def test_what_is_pinned_already_asks_nobody(server: TestHub) -> None:
    commit = server.create_repo("user/model", {})
    for ref in (parse(f"user/model@{commit}"), parse("./folder")):
        assert hub.pin(ref) is ref
    assert server.log == []


def test_what_is_not_there_is_said(server: TestHub) -> None:
    server.create_repo("user/model", {})
    assert refusal(hub.pin, parse("user/model@v9")) == [
        "user/model@v9 has no such revision",
        "  Check the branch, tag or commit.",
    ]
    assert refusal(hub.pin, parse("user/nothing")) == [
        "user/nothing does not exist on the Hub, or is private",
        "  Check the name, or `hf auth login`; a folder would be written ./user/nothing",
    ]


def test_a_private_model_needs_its_owners_token(
    server: TestHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commit = server.create_repo("user/secret", {"config.json": b"{}"}, private=True)
    assert refusal(hub.pin, parse("user/secret"))[0] == "user/secret does not exist on the Hub, or is private"
    connect(monkeypatch, server, tmp_path / "cache", token=server.token("user"))
    ref = hub.pin(parse("user/secret"))
    assert ref.revision == commit
    assert hub.files(ref) == {"config.json": 2}


def test_a_gated_model_shows_its_list_but_no_file(server: TestHub) -> None:
    commit = server.create_repo("user/gated", {"config.json": b"{}", "model.safetensors": DATA}, gated=True)
    ref = hub.pin(parse("user/gated"))
    assert hub.files(ref) == {"config.json": 2, "model.safetensors": len(DATA)}
    for call in ((hub.fetch, ref, "config.json"), (hub.read_range, ref, "model.safetensors", 0, 8)):
        assert refusal(*call) == [
            f"user/gated@{commit[:7]} is gated",
            "  Accept its terms on its page on the Hub, then `hf auth login`.",
        ]


# Files


def test_files_have_their_sizes_at_that_commit(server: TestHub) -> None:
    first = server.create_repo("user/model", {"model.safetensors": DATA, "sub/a.txt": b"12345", "empty": b""})
    server.upload("user/model", {"sub/a.txt": None, "b.txt": b"1"})
    assert hub.files(parse(f"user/model@{first}")) == {"empty": 0, "model.safetensors": len(DATA), "sub/a.txt": 5}
    assert hub.files(hub.pin(parse("user/model"))) == {"b.txt": 1, "empty": 0, "model.safetensors": len(DATA)}


def test_a_file_is_fetched_once(server: TestHub, model: ModelRef) -> None:
    assert hub.cached(model, "model.safetensors") is None
    path = hub.fetch(model, "model.safetensors")
    assert path.read_bytes() == DATA
    assert hub.cached(model, "model.safetensors") == path
    server.clear_log()
    assert hub.fetch(model, "model.safetensors") == path
    assert hub.cached(model, "nothing.json") is None
    assert server.log == []


def test_a_lacking_file_is_named(model: ModelRef) -> None:
    for call in ((hub.fetch, model, "x.json"), (hub.read_range, model, "x.json", 0, 8)):
        assert refusal(*call) == [f"{model.short} lacks x.json"]


def test_a_hub_that_is_down_is_said(server: TestHub, model: ModelRef) -> None:
    with server.down():
        lines = refusal(hub.files, model)
    assert lines[0] == f"{model.short} cannot be read"
    assert lines[1].startswith("  Server error '503")
    assert lines[2:] == ["    Running the same command again continues."]


def test_room_for_downloads_is_that_of_the_caches_disk(server: TestHub, tmp_path: Path) -> None:
    free, same = hub.cache_disk(tmp_path)  # the cache folder itself does not exist yet
    assert free > 0
    assert same
    if Path("/proc/self").exists():  # a file system of its own
        assert not hub.cache_disk(Path("/proc"))[1]


# Ranges


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, 8), (255, 258), (len(DATA) - 3, len(DATA)), (0, len(DATA))])
def test_a_range_is_exact(server: TestHub, model: ModelRef, start: int, stop: int) -> None:
    server.clear_log()
    assert hub.read_range(model, "model.safetensors", start, stop) == DATA[start:stop]
    (request,) = [entry for entry in server.log if entry.host == "storage"]
    assert (request.range, request.status, request.sent) == (f"bytes={start}-{stop - 1}", 206, stop - start)
    assert "dopkit/" in request.user_agent
    assert not request.auth


def test_a_range_of_a_small_file(model: ModelRef) -> None:
    assert hub.read_range(model, "config.json", 1, 2) == b"}"


def test_an_empty_range_asks_nobody(server: TestHub, model: ModelRef) -> None:
    server.clear_log()
    assert hub.read_range(model, "model.safetensors", 5, 5) == b""
    assert server.log == []


def test_a_range_beyond_the_end_is_refused(model: ModelRef) -> None:
    size = len(DATA)
    assert refusal(hub.read_range, model, "model.safetensors", size - 2, size + 4) == [
        f"{model.short}: asked for 6 bytes of model.safetensors, got 2",
        "  Running the same command again continues.",
    ]
    lines = refusal(hub.read_range, model, "model.safetensors", size, size + 4)
    assert lines[0] == f"{model.short} cannot be read"
    assert "416" in lines[1]
    assert "signature" not in lines[1]


def test_a_server_that_ignores_the_range_does_not_get_to_send_the_file(server: TestHub, model: ModelRef) -> None:
    server.whole(STORAGE)
    assert refusal(hub.read_range, model, "model.safetensors", 5, 10) == [
        f"{model.short}: asked for a part of model.safetensors, the server answered 200"
    ]


def test_a_body_that_breaks_in_the_middle_is_continued_there(server: TestHub, model: ModelRef) -> None:
    server.cut(STORAGE, after_bytes=3, times=2)
    server.clear_log()
    assert hub.read_range(model, "model.safetensors", 0, 100) == DATA[:100]
    assert [entry.sent for entry in server.log if entry.host == "storage"] == [3, 3, 94]


def test_a_connection_that_always_breaks_is_given_up(server: TestHub, model: ModelRef) -> None:
    server.cut(STORAGE, after_bytes=0, times=None)
    assert refusal(hub.read_range, model, "model.safetensors", 0, 100) == [
        f"{model.short}: asked for 100 bytes of model.safetensors, got 0",
        "  Running the same command again continues.",
    ]


def test_a_busy_hub_is_asked_again(server: TestHub, model: ModelRef) -> None:
    server.fail(STORAGE, 503, times=2)
    assert hub.read_range(model, "model.safetensors", 0, 4) == DATA[:4]


# Offline


def test_offline_what_was_cached_is_enough(server: TestHub, model: ModelRef, offline: Callable[[], None]) -> None:
    path = hub.fetch(model, "config.json")
    offline()
    server.clear_log()
    assert hub.pin(parse("user/model")) == model
    assert hub.files(model) == {"config.json": 2}
    assert hub.fetch(model, "config.json") == path
    assert server.log == []


def test_offline_what_was_not_cached_is_said(model: ModelRef, offline: Callable[[], None]) -> None:
    unknown = parse("user/other")
    offline()
    reached = "  Check the network and HF_HUB_OFFLINE."
    unset = "  Unset HF_HUB_OFFLINE for this run."
    assert refusal(hub.pin, unknown) == ["user/other is not in the cache, and the Hub cannot be reached", reached]
    assert refusal(hub.files, model) == [f"{model.short} is not in the cache, and HF_HUB_OFFLINE is set", unset]
    assert refusal(hub.fetch, model, "config.json") == [
        f"{model.short} is not in the cache, and the Hub cannot be reached",
        reached,
    ]
    assert refusal(hub.read_range, model, "model.safetensors", 0, 8) == [
        f"{model.short}: model.safetensors is not in the cache, and HF_HUB_OFFLINE is set",
        unset,
    ]


def test_a_storage_that_breaks_is_said_in_a_sentence(model: ModelRef, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client of Xet storage raises RuntimeError."""

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("Data processing error: CAS service error : Request failed after 5 retries")

    monkeypatch.setattr("huggingface_hub.HfApi.hf_hub_download", broken)
    said = refusal(hub.fetch, model, "model.safetensors")
    assert said[0] == f"{model.short} cannot be read"
    assert "Request failed after 5 retries" in said[1] and "Running the same command again continues." in said[2]
