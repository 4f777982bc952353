"""What will be read, said beforehand: a streamed model then fetches neighbouring bytes together, ahead of time; and a
reading thread is ahead of the arithmetic."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

from dopkit.checkpoints import Checkpoint
from dopkit.engine.pipes import Request

Rows = tuple[int, int]
Read = tuple[Checkpoint, str, Rows | None]  # no rows: the whole tensor


def announce(reads: Iterable[Read], budget: int) -> None:
    """Tell the models that are streamed what will be read of them, and what each may hold of it ahead of time."""
    expected: dict[Checkpoint, list[tuple[str, Rows | None]]] = {}
    last: dict[Checkpoint, tuple[str, Rows | None]] = {}
    for read in reads:
        for source, tensor, part in _behind(read, last):
            if source.streams:
                expected.setdefault(source, []).append((tensor, part))
    for checkpoint in last:
        checkpoint.forget()  # what was read before does not count
    for checkpoint, own in expected.items():
        checkpoint.expect(own, budget // len(expected))


def _behind(read: Read, last: dict[Checkpoint, tuple[str, Rows | None]]) -> Iterator[Read]:
    """What a read comes to in the end; ``last`` is what was read before of each model that remembers."""
    checkpoint, name, rows = read
    for piece in checkpoint.pieces(name, rows):
        if checkpoint.remembers:
            if last.get(checkpoint) == (name, piece):
                continue
            last[checkpoint] = name, piece
        for inner in checkpoint.reads(name, piece):
            if inner[0] is checkpoint:
                yield inner
            else:
                yield from _behind(inner, last)


def requests(reads: Iterable[Read]) -> Iterator[Request]:
    """The reads for ``ReadAhead``, with their sizes."""
    for read in reads:
        checkpoint, name, rows = read
        yield Request(read_bytes(read), partial(checkpoint.read, name, rows))


def read_bytes(read: Read) -> int:
    """The size of what is read."""
    checkpoint, name, rows = read
    spec = checkpoint.specs[name]
    share = 1.0 if rows is None else (rows[1] - rows[0]) / max(1, spec.rows)
    return int(spec.nbytes * share)
