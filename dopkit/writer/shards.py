"""Shards on disk: preallocated, written at planned offsets, hashed on the way, and continued after a kill.

Takes bytes and names; knows neither torch nor methods. One thread writes at a time.
"""

from __future__ import annotations

import errno
import hashlib
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dopkit.errors import OutputError, Problem
from dopkit.layout import INDEX_FILE, Placed, Shard, index_json
from dopkit.writer.journal import Journal

_CHUNK = 1 << 24


@dataclass(frozen=True)
class ShardFile:
    """A finished shard."""

    file: str
    size: int
    sha256: str


class ShardWriter:
    """Writes the tensors of a plan's shards into a working folder.

    A tensor's bytes come in order through ``write``; ``complete`` journals it. ``done`` names those that an earlier
    run completed and whose bytes are still good. A shard is finished as soon as its last tensor is; ``on_shard`` is
    told of each, at once for those that an earlier run left complete. Shards ``elsewhere`` have left the disk.

    Several writers may share a journal: each has its own ``place``, a sub-folder. What is done already is not written
    again.
    """

    def __init__(
        self,
        folder: Path,
        shards: Sequence[Shard],
        journal: Journal,
        on_shard: Callable[[ShardFile, Path], None] | None = None,
        elsewhere: Mapping[str, ShardFile] | None = None,
        place: str = "",
    ) -> None:
        self._folder = folder / place
        self._folder.mkdir(parents=True, exist_ok=True)
        self._prefix = f"{place}/" if place else ""
        self._shards = shards
        self._journal = journal
        self._files = [_OpenShard(self._folder, shard) for shard in shards]
        self._place: dict[str, tuple[_OpenShard, Placed]] = {
            tensor.name: (file, tensor)
            for file, shard in zip(self._files, shards, strict=True)
            for tensor in shard.tensors
        }
        self._crc: dict[str, int] = {}  # of the tensors in hand
        gone = elsewhere or {}
        self._on_shard = on_shard
        self._finished = {file: gone[file.shard.file] for file in self._files if file.shard.file in gone}
        self.done = {name for name in self._place if self._still_good(name)}
        self._missing = {file: {tensor.name for tensor in file.shard.tensors} - self.done for file in self._files}
        for file, missing in self._missing.items():
            if not missing and file not in self._finished:
                self._finish(file)

    def _still_good(self, name: str) -> bool:
        entry = self._journal.entries.get(self._prefix + name)
        shard, tensor = self._place[name]
        if shard in self._finished:
            return True
        return entry is not None and shard.check(tensor, int(entry["crc"]))

    def write(self, name: str, position: int, data: memoryview) -> None:
        """Put ``data`` at byte ``position`` of a tensor; positions of one tensor must rise without a gap.

        Raises OutputError when the disk is full or fails.
        """
        if name in self.done:
            return
        shard, tensor = self._place[name]
        self._crc[name] = zlib.crc32(data, self._crc.get(name, 0) if position else 0)
        try:
            shard.write(tensor.offset + position, data)
        except OSError as error:
            raise _failed(self._folder, error) from error

    def complete(self, name: str, record: dict[str, Any]) -> None:
        """All bytes of this tensor are written: journal it with what the receipt will say."""
        if name in self.done:
            return
        shard = self._place[name][0]
        self._journal.append({"name": self._prefix + name, "crc": self._crc.pop(name, 0), **record})
        self.done.add(name)
        self._missing[shard].discard(name)
        if not self._missing[shard]:
            self._finish(shard)

    def _finish(self, shard: _OpenShard) -> None:
        try:
            self._finished[shard] = shard.finish()
        except OSError as error:
            raise _failed(self._folder, error) from error
        if self._on_shard is not None:
            self._on_shard(self._finished[shard], shard.path)

    def entry(self, name: str) -> dict[str, Any]:
        """What ``complete`` was told of a tensor, in this run or an earlier one."""
        return self._journal.entries[self._prefix + name]

    def finish(self) -> list[ShardFile]:
        """Write the index. Call when every tensor is complete."""
        assert self.done == self._place.keys(), "finish() before every tensor is complete"
        if index := index_json(self._shards):
            write_text(self._folder / INDEX_FILE, index)
        return [self._finished[shard] for shard in self._files]

    def close(self) -> None:
        """Let go of the files; what is journaled stays for the next run."""
        for shard in self._files:
            shard.close()


class _OpenShard:
    """One shard file. Its hash follows the writing as long as that goes from front to back."""

    def __init__(self, folder: Path, shard: Shard) -> None:
        self.path = folder / shard.file
        self.shard = shard
        self._handle: int | None = None
        self._hash = hashlib.sha256(shard.header)
        self._hashed = len(shard.header)  # bytes from the front that are in the hash

    def check(self, tensor: Placed, crc: int) -> bool:
        """Whether the bytes that an earlier run wrote for a tensor are all there."""
        if not self.path.exists() or self.path.stat().st_size != self.shard.size:
            return False
        in_order = self._hashed == tensor.offset
        trial, found = self._hash.copy(), 0
        for chunk in self._chunks(tensor.offset, tensor.offset + tensor.nbytes):
            found = zlib.crc32(chunk, found)
            if in_order:
                trial.update(chunk)
        if found == crc and in_order:
            self._hash, self._hashed = trial, tensor.offset + tensor.nbytes
        return found == crc

    def write(self, offset: int, data: memoryview) -> None:
        handle = self._open()
        done = 0
        while done < len(data):
            done += os.pwrite(handle, data[done:], offset + done)
        if self._hashed == offset:
            self._hash.update(data)
            self._hashed = offset + len(data)

    def finish(self) -> ShardFile:
        handle = self._open()  # a shard of empty tensors was never written to
        os.pwrite(handle, self.shard.header, 0)
        for chunk in self._chunks(self._hashed, self.shard.size):
            self._hash.update(chunk)
        self.close()
        return ShardFile(self.shard.file, self.shard.size, self._hash.hexdigest())

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _open(self) -> int:
        """The file, made at its full size at the first write: a full disk shows before the work, not after."""
        if self._handle is None:
            self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            _allocate(self._handle, self.shard.size)
        return self._handle

    def _chunks(self, start: int, stop: int) -> Iterator[bytes]:
        handle = self._open()
        while start < stop:
            chunk = os.pread(handle, min(_CHUNK, stop - start), start)
            assert chunk, f"{self.path} is shorter than it was made"
            yield chunk
            start += len(chunk)


def _allocate(handle: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(handle, 0, size)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
    os.truncate(handle, size)


def write_text(path: Path, text: str) -> None:
    """Write a small file so that it is there whole or not at all."""
    beside = path.with_name(path.name + ".new")
    beside.write_text(text, encoding="utf-8")
    beside.rename(path)


def _failed(folder: Path, error: OSError) -> OutputError:
    remedy = "Make room and run the same command again: it goes on from here." if error.errno == errno.ENOSPC else ""
    return OutputError(f"cannot write to {folder}", [Problem("", error.strerror or str(error), remedy)])
