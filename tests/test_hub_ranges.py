"""Parts of a remote file, through the real client, against every misfortune that the test Hub knows."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hubserver import Entry, TestHub, connect

from dopkit import hub, refs
from dopkit.errors import HubError
from dopkit.hub import RemoteFile, ranges

DATA = bytes(range(251)) * 5000  # 1.25 MB; no power of two, so that a shifted part is noticed
SIZE = len(DATA)
STORAGE = "GET expires"
FILE = "model.safetensors"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[TestHub]:
    with TestHub() as server:
        connect(monkeypatch, server, tmp_path / "cache", token=server.token("user"))
        yield server
        assert server.crashes == []


@pytest.fixture
def remote(server: TestHub) -> RemoteFile:
    server.create_repo("user/model", {"config.json": b'{"a": 1}', FILE: DATA}, private=True)
    return RemoteFile(hub.pin(refs.parse("user/model", Path())), FILE)


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What would have been waited, by the client and by us."""
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    return waited


def read(remote: RemoteFile, start: int, stop: int) -> None:
    """Read and compare."""
    assert remote.read(start, stop) == DATA[start:stop]


def refusal(remote: RemoteFile, start: int = 0, stop: int = 100) -> list[str]:
    with pytest.raises(HubError) as caught:
        remote.read(start, stop)
    return str(caught.value).splitlines()


def at(server: TestHub, host: str) -> list[Entry]:
    return [entry for entry in server.log if entry.host == host]


def test_the_address_is_asked_for_once_and_the_token_stays_here(server: TestHub, remote: RemoteFile) -> None:
    server.clear_log()
    for start in range(0, SIZE, 100_000):
        read(remote, start, min(SIZE, start + 100_000))
    (asked,) = at(server, "hub")
    assert (asked.method, asked.path.rpartition("/")[2], asked.auth) == ("GET", FILE, True)
    assert len(at(server, "storage")) == 13
    assert sum(entry.sent for entry in at(server, "storage")) == SIZE
    assert not any(entry.auth for entry in at(server, "storage"))
    assert {entry.status for entry in at(server, "storage")} == {206}


def test_an_expired_address_is_asked_for_again(server: TestHub, remote: RemoteFile, pauses: list[float]) -> None:
    read(remote, 0, 10)
    server.expire_links()
    server.clear_log()
    read(remote, 10, 20)
    read(remote, 20, 30)
    assert [(entry.host, entry.status) for entry in server.log] == [
        ("storage", 403), ("hub", 302), ("storage", 206), ("storage", 206),
    ]  # fmt: skip
    assert pauses == []


def test_a_storage_host_that_refuses_a_new_address_too_is_reported(server: TestHub, remote: RemoteFile) -> None:
    read(remote, 0, 10)
    server.fail(STORAGE, 403, times=None, message="no")
    lines = refusal(remote)
    assert lines[0].endswith("cannot be read")
    assert lines[1].startswith("  403 Forbidden") and len(lines) == 3
    assert "signature" not in "".join(lines)


def test_a_small_file_comes_from_the_hub_itself(server: TestHub, remote: RemoteFile) -> None:
    small = RemoteFile(hub.pin(refs.parse("user/model", Path())), "config.json")
    for start in range(3):
        assert small.read(start, start + 2) == b'{"a": 1}'[start : start + 2]
    assert at(server, "storage") == []


@pytest.mark.parametrize("after", [0, 1, 250_000])
def test_a_broken_body_is_continued(server: TestHub, remote: RemoteFile, after: int) -> None:
    server.cut(STORAGE, after_bytes=after, times=3)
    server.clear_log()
    read(remote, 7, 1_000_007)
    storage = at(server, "storage")
    assert storage[-1].range == f"bytes={7 + 3 * after}-1000006"
    assert sum(entry.sent for entry in storage) == 1_000_000


def test_a_body_that_is_too_short_is_continued(server: TestHub, remote: RemoteFile) -> None:
    server.wrong_length(STORAGE, by=-7)
    read(remote, 100, 600)
    assert at(server, "storage")[-1].range == "bytes=593-599"


def test_a_body_that_is_too_long_is_not_taken(server: TestHub, remote: RemoteFile) -> None:
    server.wrong_length(STORAGE, by=7, times=2)
    read(remote, 100, 600)
    assert [entry.range for entry in at(server, "storage")] == ["bytes=100-599"] * 3
    server.wrong_length(STORAGE, by=7, times=None)
    assert refusal(remote)[0].endswith("asked for 100 bytes of model.safetensors, got 0")


def test_a_server_that_ignores_the_range_is_reported(server: TestHub, remote: RemoteFile) -> None:
    server.whole(STORAGE)
    assert refusal(remote)[0].endswith("asked for a part of model.safetensors, the server answered 200")
    read(remote, 0, 100)


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_busy_server_is_asked_again(server: TestHub, remote: RemoteFile, pauses: list[float], status: int) -> None:
    read(remote, 0, 10)
    server.fail(STORAGE, status, times=2, retry_after=4)
    read(remote, 10, 20)
    assert pauses == [5.0, 5.0]  # the server's pace, and a second for rounding


def test_a_rate_limit_is_waited_for(
    server: TestHub, remote: RemoteFile, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        server.clear_faults()

    monkeypatch.setattr("time.sleep", sleep)
    server.rate_limit(0, window=40)
    read(remote, 0, 10)
    assert len(pauses) == 1 and 39 <= pauses[0] <= 41


def test_a_server_that_stays_down_is_one_sentence(
    server: TestHub, remote: RemoteFile, caplog: pytest.LogCaptureFixture
) -> None:
    read(remote, 0, 10)
    with server.down():
        lines = refusal(remote)
    assert lines[0].endswith("cannot be read") and "503" in lines[1] and "Running the same command again" in lines[2]
    assert "Retrying" in caplog.text
    assert "signature" not in caplog.text + "".join(lines)
    read(remote, 0, 10)


def test_a_body_that_always_breaks_is_given_up(server: TestHub, remote: RemoteFile, pauses: list[float]) -> None:
    server.cut(STORAGE, times=None)
    assert refusal(remote) == [
        f"{hub.pin(refs.parse('user/model', Path())).short}: asked for 100 bytes of model.safetensors, got 0",
        "  Running the same command again continues.",
    ]
    assert pauses == [1.0, 2.0, 4.0, 8.0]
    assert len(at(server, "storage")) == 5


def test_progress_renews_the_tries(server: TestHub, remote: RemoteFile, pauses: list[float]) -> None:
    server.cut(STORAGE, after_bytes=10, times=9)
    read(remote, 0, 100)
    assert pauses == []


def test_a_slow_body_arrives(server: TestHub, remote: RemoteFile) -> None:
    server.slow(STORAGE, 0.01, every=10)
    read(remote, 0, 100)


def test_a_body_that_stalls_is_asked_for_again(
    server: TestHub, remote: RemoteFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "TIMEOUT", 0.2)
    server.slow(STORAGE, 2.0, every=60)
    read(remote, 0, 100)


def test_stopping_ends_a_read(server: TestHub, remote: RemoteFile) -> None:
    server.slow(STORAGE, 0.02, every=1000, times=None)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(remote.read, 0, SIZE)
        while not at(server, "storage"):
            threading.Event().wait(0.01)
        remote.stop()
        with pytest.raises(HubError, match=r"reading model\.safetensors was stopped"):
            reading.result(timeout=5)


def test_many_threads_get_their_own_bytes_and_few_requests_are_under_way(
    server: TestHub, remote: RemoteFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way, most, lock = [0], [0], threading.Lock()
    body: Any = RemoteFile._body

    def counted(self: RemoteFile, answer: Any, view: memoryview) -> Any:
        with lock:
            under_way[0] += 1
            most[0] = max(most[0], under_way[0])
        threading.Event().wait(0.005)
        try:
            return body(self, answer, view)
        finally:
            with lock:
                under_way[0] -= 1

    monkeypatch.setattr(RemoteFile, "_body", counted)
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(lambda start: read(remote, start, start + 5000), range(0, 1_000_000, 5000)))
    assert 2 <= most[0] <= 8


def test_offline_is_said_before_anything_is_asked(
    server: TestHub, remote: RemoteFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    server.clear_log()
    assert "HF_HUB_OFFLINE is set" in refusal(remote)[0]
    assert remote.read(5, 5) == b""
    assert server.log == []
