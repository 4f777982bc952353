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
    for checkpoint, name, rows in reads:
        for source, tensor, part in checkpoint.reads(name, rows):
            if source.streams:
                known = expected.setdefault(source, [])
                if not (source.remembers and known and known[-1] == (tensor, part)):
                    known.append((tensor, part))
    for checkpoint, own in expected.items():
        checkpoint.expect(own, budget // len(expected))


def requests(reads: Iterable[Read]) -> Iterator[Request]:
    """The reads for ``ReadAhead``, with their sizes."""
    for checkpoint, name, rows in reads:
        spec = checkpoint.specs[name]
        share = 1.0 if rows is None else (rows[1] - rows[0]) / max(1, spec.rows)
        yield Request(int(spec.nbytes * share), partial(checkpoint.read, name, rows))
