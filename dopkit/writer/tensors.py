"""Tensors written at their planned offsets into files that are there: the part of any process of a merge.

Takes bytes and names; knows neither torch nor methods, nor when a file is complete.
"""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from dopkit.layout import Placed, Shard
from dopkit.writer.failing import writing


class Entries(Protocol):
    """What a writer needs of a journal."""

    entries: dict[str, dict[str, Any]]

    def append(self, entry: dict[str, Any]) -> None: ...


class OpenFile:
    """One shard's file, which another process has made at its full size."""

    def __init__(self, folder: Path, shard: Shard) -> None:
        self.path = folder / shard.file
        self.shard = shard
        self._handle: int | None = None

    def write(self, offset: int, data: memoryview) -> None:
        handle = self._opened()
        done = 0
        while done < len(data):
            done += os.pwrite(handle, data[done:], offset + done)

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _opened(self) -> int:
        if self._handle is None:
            self._handle = self._open()
        return self._handle

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY)


class TensorWriter:
    """Writes some of the tensors of a plan's shards, and journals each that is complete.

    ``folder`` is the working folder, ``place`` the sub-folder of it that the shards are in.
    """

    def __init__(
        self,
        folder: Path,
        shards: Sequence[Shard],
        journal: Entries,
        place: str = "",
        kind: Callable[[Path, Shard], Any] = OpenFile,
    ) -> None:
        self._folder = folder / place
        self._prefix = f"{place}/" if place else ""
        self._journal = journal
        self._files = [kind(self._folder, shard) for shard in shards]
        self._place: dict[str, tuple[Any, Placed]] = {
            tensor.name: (file, tensor)
            for file, shard in zip(self._files, shards, strict=True)
            for tensor in shard.tensors
        }
        self._crc: dict[str, int] = {}  # of the tensors in hand
        self.done: set[str] = set()

    def key(self, name: str) -> str:
        """A tensor's name in the journal."""
        return self._prefix + name

    def named(self, key: str) -> str | None:
        """The tensor of that name in the journal; None when it is not one of these."""
        name = key.removeprefix(self._prefix)
        return name if name in self._place and self.key(name) == key else None

    def write(self, name: str, position: int, data: memoryview) -> None:
        """Put ``data`` at byte ``position`` of a tensor; positions of one tensor must rise without a gap.

        Raises OutputError when the disk is full or fails.
        """
        if name in self.done:
            return
        file, tensor = self._place[name]
        self._crc[name] = zlib.crc32(data, self._crc.get(name, 0) if position else 0)
        with self._failing():
            file.write(tensor.offset + position, data)

    def complete(self, name: str, record: dict[str, Any]) -> None:
        """All bytes of this tensor are written: journal it with what the receipt will say."""
        if name in self.done:
            return
        self._journal.append({"name": self.key(name), "crc": self._crc.pop(name, 0), **record})
        self.done.add(name)

    def entry(self, name: str) -> dict[str, Any]:
        """What ``complete`` was told of a tensor, in this run or an earlier one."""
        return self._journal.entries[self.key(name)]

    def close(self) -> None:
        """Let go of the files; what is journaled stays for the next run."""
        for file in self._files:
            with self._failing():
                file.close()

    def _failing(self) -> AbstractContextManager[None]:
        return writing(self._folder, {errno.ENOENT: _LACKS})


_LACKS = "Another process made it: is the folder on storage that every machine shares?"
