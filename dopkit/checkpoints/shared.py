"""A model that several adapters stand on: opened once, and each part of it read once for all of them.

A merge reads the same part of every model in a row, so the last one is enough to remember.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dopkit.checkpoints.adapter_places import Names
from dopkit.checkpoints.checkpoint import Checkpoint

if TYPE_CHECKING:
    import torch


class Shared(Checkpoint):
    """``source``, with the last part that was read of it kept in memory."""

    remembers = True

    def __init__(self, source: Checkpoint) -> None:
        super().__init__(source.ref, source.specs, source.config, source.side_files, source.identity)
        self.notes, self.complete, self.streams = source.notes, source.complete, source.streams
        self.names = Names(source.config, source.specs)
        self._source = source
        self._streamed: Shared | None = None
        self._last: tuple[str, tuple[int, int] | None] | None = None
        self._tensor: torch.Tensor | None = None
        self._lock = threading.Lock()

    @property
    def state(self) -> str:
        return self._source.state

    @property
    def download_bytes(self) -> int:
        return self._source.download_bytes

    @property
    def missing(self) -> frozenset[str]:
        return self._source.missing

    def streamed(self) -> Shared:
        if self._streamed is None:
            source = self._source.streamed()
            self._streamed = self if source is self._source else Shared(source)
        return self._streamed

    def fetch(self) -> None:
        self._source.fetch()

    def expect(self, reads: Sequence[tuple[str, tuple[int, int] | None]], budget: int) -> None:
        self._source.expect(reads, budget)

    def lend(self, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
        """The same as ``read``, but not the caller's own: it must not be written to."""
        with self._lock:
            if self._tensor is None or self._last != (name, rows):
                self._last, self._tensor = None, None  # before the next one: never two
                self._tensor = self._source.read(name, rows)
                self._last = (name, rows)
            return self._tensor

    def read(self, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
        return self.lend(name, rows).clone()

    def aside(self, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
        """The same as ``read``, with what is remembered left as it is."""
        return self._source.read(name, rows)

    def side_file(self, name: str) -> Path:
        return self._source.side_file(name)

    def digests(self, name: str) -> frozenset[str]:
        return self._source.digests(name)

    def close(self) -> None:
        self._source.close()
        with self._lock:
            self._last, self._tensor = None, None
