"""What a worker has to say is bounded, in order, and whole; its errors come back as ours."""

from __future__ import annotations

import pickle
import threading
import time
from pathlib import Path

import pytest

from dopkit import errors
from dopkit.checkpoints import IsAdapter
from dopkit.cluster import outbox
from dopkit.cluster.messages import Began, Failure, Piece
from dopkit.cluster.outbox import Outbox, PostedFile
from dopkit.layout import lay_out


def test_who_fills_it_waits() -> None:
    box, put = Outbox(limit=10), []

    def fill() -> None:
        for number in range(5):
            box.put(Piece("", "x", number, bytes(6)))
            put.append(number)

    thread = threading.Thread(target=fill)
    thread.start()
    taken = []
    while len(taken) < 5:
        time.sleep(0.02)
        assert len(put) <= len(taken) + 1, "one piece fits"
        taken += box.take()
    thread.join()
    assert [piece.position for piece in taken if isinstance(piece, Piece)] == list(range(5))


def test_a_piece_larger_than_the_limit_passes() -> None:
    box = Outbox(limit=10)
    box.put(Began("x"))
    box.put(Piece("", "x", 0, bytes(100)))
    assert len(box.take()) == 2


def test_a_posted_file_arrives_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "PIECE_BYTES", 7)
    shard = lay_out([("a", "F32", (5,)), ("empty", "F32", (0,)), ("b", "F32", (3, 2))], 10**6)[0]
    box, file = Outbox(), bytearray(shard.size)
    posted = PostedFile(Path(), shard, "steps/01", box)
    start = len(shard.header)
    data = bytes(range(shard.size - start))
    by_name = {tensor.name: tensor for tensor in shard.tensors}
    for offset, stop in ((by_name["b"].offset + 8, shard.size), (start, by_name["b"].offset), (start + 20, start + 28)):
        if by_name["a"].offset <= offset < by_name["a"].offset + 20:
            stop = by_name["a"].offset + 20
        posted.write(offset, memoryview(data)[offset - start : stop - start])
    for piece in box.take():
        assert isinstance(piece, Piece) and len(piece.data) <= 7 and piece.place == "steps/01"
        offset = by_name[piece.name].offset + piece.position
        file[offset : offset + len(piece.data)] = piece.data
    assert bytes(file[start:]) == data


@pytest.mark.parametrize("error", [errors.MergeError("no"), errors.HubError("off", [errors.Problem("a", "b", "c")])])
def test_errors_come_back_as_they_were(error: errors.DopkitError) -> None:
    back = pickle.loads(pickle.dumps(Failure.of(error))).error()
    assert type(back) is type(error) and str(back) == str(error) and back.problems == error.problems


def test_of_a_special_error_the_general_one_comes_back() -> None:
    class Special(IsAdapter):
        def __init__(self) -> None:
            errors.CheckpointError.__init__(self, "it is an adapter")

    back = Failure.of(Special()).error()
    assert type(back) is errors.CheckpointError and str(back) == "it is an adapter"
