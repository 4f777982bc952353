"""The worker's end: what it has to say, bounded in bytes, and results that travel instead of being written.

Whoever fills it waits while the other side does not take.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from dopkit.cluster.messages import Piece, Said
from dopkit.layout import Shard

PIECE_BYTES = 16_000_000
HELD_BYTES = 64_000_000  # on their way at most, once here and once with the other side

Entry = dict[str, Any]


class Outbox:
    """What waits to be taken, in order."""

    def __init__(self, limit: int = HELD_BYTES) -> None:
        self._limit = limit
        self._held = 0
        self._said: deque[Said] = deque()
        self._change = threading.Condition()

    def put(self, said: Said) -> None:
        nbytes = len(said.data) if isinstance(said, Piece) else 0
        with self._change:
            self._change.wait_for(lambda: not self._held or self._held + nbytes <= self._limit)
            self._held += nbytes
            self._said.append(said)
            self._change.notify_all()

    def take(self) -> list[Said]:
        """All that is there, at least one: waits for it."""
        with self._change:
            self._change.wait_for(lambda: self._said)
            found = list(self._said)
            self._said.clear()
            self._held = 0
            self._change.notify_all()
        return found


class Ledger:
    """A journal that is kept elsewhere: every entry is told at once."""

    def __init__(self, tell: Callable[[Entry], None]) -> None:
        self.entries: dict[str, Entry] = {}
        self._tell = tell

    def append(self, entry: Entry) -> None:
        self.entries[entry["name"]] = entry
        self._tell(entry)

    def know(self, entries: Iterable[Entry]) -> None:
        """What others have finished, for those that ask."""
        self.entries |= {entry["name"]: entry for entry in entries}


class PostedFile:
    """A shard's file that is on another machine: what is written to it goes into the outbox, in pieces."""

    def __init__(self, folder: Path, shard: Shard, place: str, outbox: Outbox) -> None:
        self.path = folder / shard.file
        self._place, self._outbox = place, outbox
        self._tensors = sorted((tensor for tensor in shard.tensors if tensor.nbytes), key=lambda one: one.offset)
        self._offsets = [tensor.offset for tensor in self._tensors]

    def write(self, offset: int, data: memoryview) -> None:
        tensor = self._tensors[bisect_right(self._offsets, offset) - 1]
        for start in range(0, len(data), PIECE_BYTES):
            piece = bytes(data[start : start + PIECE_BYTES])
            self._outbox.put(Piece(self._place, tensor.name, offset - tensor.offset + start, piece))

    def close(self) -> None:
        """There is nothing to let go of."""
