"""A model that several others read, as adapters read their base: opened once, and each part read once for all.

A merge reads the same part of every model in a row, so the last one is enough to remember.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dopkit.checkpoints.adapter_places import Names
from dopkit.checkpoints.checkpoint import Checkpoint, Read

if TYPE_CHECKING:
    import torch


class Shared(Checkpoint):
    """``source``, with the last part that was read of it kept in memory."""

    remembers = True

    def __init__(self, source: Checkpoint) -> None:
        super().__init__(source.ref, source.specs, source.config, source.side_files, source.identity)
        self.notes, self.complete, self.streams = source.notes, source.complete, source.streams
        self.names = Names(source.config, source.specs)
        self.source = source
        self._streamed: Shared | None = None
        self._last: tuple[str, tuple[int, int] | None] | None = None
        self._tensor: torch.Tensor | None = None
        self._lock = threading.Lock()

    @property
    def state(self) -> str:
        return self.source.state

    @property
    def changed(self) -> bool:
        return self.source.changed

    @property
    def download_bytes(self) -> int:
        return self.source.download_bytes

    @property
    def missing(self) -> frozenset[str]:
        return self.source.missing

    def streamed(self) -> Shared:
        if self._streamed is None:
            source = self.source.streamed()
            self._streamed = self if source is self.source else Shared(source)
        return self._streamed

    def fetch(self) -> None:
        self.source.fetch()

    @property
    def sources(self) -> tuple[Checkpoint, ...]:
        return (self,) if self.source.sources == (self.source,) else self.source.sources

    def reads(self, name: str, rows: tuple[int, int] | None) -> Iterator[Read]:
        yield self.source, name, rows

    def forget(self) -> None:
        with self._lock:
            self._last, self._tensor = None, None

    def lend(self, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
        """The same as ``read``, but not the caller's own: it must not be written to."""
        with self._lock:
            if self._tensor is None or self._last != (name, rows):
                self._last, self._tensor = None, None  # before the next one: never two
                self._tensor = self.source.read(name, rows)
                self._last = (name, rows)
            return self._tensor

    def read(self, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
        return self.lend(name, rows).clone()

    def aside(self, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
        """The same as ``read``, with what is remembered left as it is."""
        return self.source.read(name, rows)

    def side_file(self, name: str) -> Path:
        return self.source.side_file(name)

    def digests(self, name: str) -> frozenset[str]:
        return self.source.digests(name)

    def close(self) -> None:
        self.source.close()
        self.forget()
