"""Unit tests for models read over the network: which requests are made for which reads, and what is held."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tiny
import torch
from hubserver import Entry, TestHub, connect
from safetensors.torch import save

from dopkit import hub, refs
from dopkit.checkpoints import Checkpoint, open_checkpoint, streamed
from dopkit.checkpoints.streamed import StreamedCheckpoint
from dopkit.errors import HubError

Reads = list[tuple[str, tuple[int, int] | None]]

# layers of 2 x 120 kB; the header is read with the first 100 kB
LAYERS = 10
TENSORS = {
    f"layer.{layer}.{part}": torch.full((100, 300), float(2 * layer + number))
    for layer in range(LAYERS)
    for number, part in enumerate("ab")
} | {"empty": torch.zeros(0, 4), "scalar": torch.tensor(7, dtype=torch.int64)}
NBYTES = 120_000
ALL: Reads = [(f"layer.{layer}.{part}", None) for layer in range(LAYERS) for part in "ab"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[TestHub]:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with TestHub() as server:
        connect(monkeypatch, server, tmp_path / "cache")
        yield server
        assert server.crashes == []


@pytest.fixture
def model(server: TestHub) -> Iterator[Checkpoint]:
    """``user/model`` in one file, opened to be streamed, the log empty."""
    server.create_repo("user/model", {"model.safetensors": save(TENSORS), "config.json": b"{}", "LICENSE": b"free"})
    checkpoint = open_streamed("user/model")
    server.clear_log()
    yield checkpoint
    checkpoint.close()


def open_streamed(text: str) -> Checkpoint:
    checkpoint = open_checkpoint(hub.pin(refs.parse(text, Path()))).streamed()
    assert isinstance(checkpoint, StreamedCheckpoint)
    return checkpoint


def read_all(checkpoint: Checkpoint, reads: Reads) -> None:
    for name, rows in reads:
        expected = TENSORS[name] if rows is None else TENSORS[name][rows[0] : rows[1]]
        assert torch.equal(checkpoint.read(name, rows), expected), (name, rows)


def storage(server: TestHub) -> list[Entry]:
    return [entry for entry in server.log if entry.host == "storage"]


def sent(server: TestHub) -> int:
    return sum(entry.sent for entry in storage(server))


def settled(server: TestHub, requests: int) -> int:
    """The number of requests, waiting a moment for those made ahead."""
    for _ in range(200):
        if len(storage(server)) >= requests:
            break
        threading.Event().wait(0.005)
    threading.Event().wait(0.02)
    return len(storage(server))


def test_it_is_the_same_model(model: Checkpoint, server: TestHub) -> None:
    opened = open_checkpoint(model.ref)
    assert (model.specs, model.config, model.side_files, model.identity, model.state, model.notes) == (
        opened.specs, opened.config, opened.side_files, opened.identity, opened.state, opened.notes,
    )  # fmt: skip
    assert model.streams and not opened.streams
    assert model.side_file("LICENSE").read_text() == "free"
    model.fetch()
    assert model.download_bytes == 0
    assert model.missing == frozenset()


def test_reads_that_nobody_announced(model: Checkpoint, server: TestHub) -> None:
    read_all(model, [("layer.3.a", None), ("layer.3.b", (5, 9)), ("scalar", None), ("empty", None)])
    assert model.read("scalar", (0, 1)) == 7
    assert sent(server) == NBYTES + 4 * 300 * 4 + 8 + 8
    assert [entry.host for entry in server.log].count("hub") == 0  # the address is known from the header
    with pytest.raises(IndexError):
        model.read("layer.3.a", (5, 101))


def test_announced_neighbours_come_with_one_request(model: Checkpoint, server: TestHub) -> None:
    model.expect(ALL, budget=4 * LAYERS * NBYTES)
    read_all(model, ALL)
    assert len(storage(server)) == 1
    assert sent(server) == 2 * LAYERS * NBYTES


def test_a_window_is_held_while_the_next_is_fetched_and_no_more(model: Checkpoint, server: TestHub) -> None:
    model.expect(ALL, budget=4 * NBYTES)  # one layer at a time
    read_all(model, ALL[:1])
    assert settled(server, 2) == 2
    read_all(model, ALL[1:2])
    assert settled(server, 3) == 3
    read_all(model, ALL[2:])
    assert len(storage(server)) == LAYERS
    assert sent(server) == 2 * LAYERS * NBYTES


def test_rows_of_a_tensor_are_fetched_together(model: Checkpoint, server: TestHub) -> None:
    reads: Reads = [(name, (start, start + 10)) for name, _ in ALL for start in range(0, 100, 10)]
    model.expect(reads, budget=8 * NBYTES)
    read_all(model, reads)
    assert len(storage(server)) == LAYERS / 2
    assert sent(server) == 2 * LAYERS * NBYTES


def test_another_order_costs_no_more(model: Checkpoint, server: TestHub) -> None:
    reads = [read for layer in range(LAYERS - 2, -1, -2) for read in reversed(ALL[2 * layer : 2 * layer + 4])]
    model.expect(reads, budget=8 * NBYTES)
    read_all(model, reads)
    assert len(storage(server)) == LAYERS / 2
    assert sent(server) == 2 * LAYERS * NBYTES


def test_a_read_in_between_does_not_disturb(model: Checkpoint, server: TestHub) -> None:
    model.expect(ALL, budget=4 * NBYTES)
    for number, read in enumerate(ALL):
        read_all(model, [read, ALL[number - 3]])
    assert sent(server) == 4 * LAYERS * NBYTES


def test_a_read_that_is_left_out_only_costs_requests(model: Checkpoint, server: TestHub) -> None:
    model.expect(ALL, budget=4 * NBYTES)
    read_all(model, ALL[:3] + ALL[5:])


def test_announcing_anew_forgets_what_was_announced(model: Checkpoint, server: TestHub) -> None:
    model.expect(ALL, budget=4 * NBYTES)
    read_all(model, ALL[:3])
    model.expect(ALL[10:], budget=4 * NBYTES)
    read_all(model, ALL[10:])


def test_what_does_not_fit_twice_goes_straight_into_its_tensor(
    model: Checkpoint, server: TestHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.expect(ALL, budget=NBYTES)
    read_all(model, ALL[:2])
    assert len(storage(server)) == 2
    monkeypatch.setattr(streamed, "_PIECE", NBYTES // 3)
    server.clear_log()
    read_all(model, ALL[2:3])
    assert len(storage(server)) == 3  # side by side
    assert sent(server) == NBYTES


def test_many_threads_read_what_they_ask_for(model: Checkpoint, server: TestHub) -> None:
    model.expect(ALL, budget=4 * NBYTES)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda read: read_all(model, [read]), ALL * 3))


def test_files_in_the_cache_are_not_fetched(server: TestHub, llama: Path) -> None:
    server.add_folder("user/base", llama / "base")
    tensors = tiny.read(llama / "base")
    opened = open_checkpoint(hub.pin(refs.parse("user/base", Path())))
    files = sorted({spec.file for spec in opened.specs.values()})
    hub.fetch(opened.ref, files[0])
    checkpoint = open_streamed("user/base")
    server.clear_log()
    reads: Reads = [(name, None) for name in opened.specs]
    checkpoint.expect(reads, 1 << 20)
    assert all(torch.equal(checkpoint.read(name), tensors[name]) for name in opened.specs)
    needed = sum(spec.nbytes for spec in opened.specs.values() if spec.file != files[0])
    assert sent(server) == needed
    assert len(storage(server)) == len(files) - 1
    checkpoint.close()
    for file in files[1:]:
        hub.fetch(opened.ref, file)
    assert opened.streamed() is opened


def test_a_failure_is_told_to_the_reader_who_waits(model: Checkpoint, server: TestHub) -> None:
    model.expect(ALL, budget=8 * NBYTES)
    with server.down(), pytest.raises(HubError, match="cannot be read"):
        model.read("layer.0.a")
    read_all(model, ALL)  # each read by itself


def test_closing_does_not_wait_for_what_nobody_will_read(model: Checkpoint, server: TestHub) -> None:
    model.expect(ALL, budget=4 * NBYTES)
    read_all(model, ALL[:1])
    assert settled(server, 2) == 2
    server.slow("GET expires", 0.05, every=1000, times=None)  # twelve seconds for a layer
    read_all(model, ALL[1:2])
    assert settled(server, 3) == 3
    closing = threading.Thread(target=model.close)
    closing.start()
    closing.join(timeout=3)
    assert not closing.is_alive()
