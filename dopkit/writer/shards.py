"""Shards on disk: preallocated, written at planned offsets, hashed on the way, and continued after a kill.

Takes bytes and names, and keeps the bytes until they are hashed; knows neither torch nor methods. One thread writes at
a time; other processes may write other tensors of the same files (``tensors``).
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dopkit.errors import OutputError, Problem
from dopkit.layout import INDEX_FILE, Placed, Shard, index_json
from dopkit.writer.behind import WriteBehind
from dopkit.writer.failing import writing
from dopkit.writer.journal import Journal
from dopkit.writer.tensors import OpenFile, TensorWriter

_CHUNK = 1 << 22
_THREADS = 8  # shards that are read back at the same time, at most: one each, as hashes are
_HASH_BYTES = 8_000_000  # written and not yet hashed


@dataclass(frozen=True)
class ShardFile:
    """A finished shard."""

    file: str
    size: int
    sha256: str


class ShardWriter(TensorWriter):
    """Writes the tensors of a plan's shards into a working folder, and finishes the shards.

    A tensor's bytes come in order through ``write``; ``complete`` journals it. ``done`` names those that an earlier
    run completed and whose bytes are still good. A shard is finished as soon as its last tensor is; ``on_shard`` is
    told of each, at once for those that an earlier run left complete. Shards ``elsewhere`` have left the disk.

    Several writers may share a journal: each has its own ``place``, a sub-folder. What is done already is not written
    again.
    """

    _files: list[_OpenShard]

    def __init__(
        self,
        folder: Path,
        shards: Sequence[Shard],
        journal: Journal,
        on_shard: Callable[[ShardFile, Path], None] | None = None,
        elsewhere: Mapping[str, ShardFile] | None = None,
        place: str = "",
    ) -> None:
        (folder / place).mkdir(parents=True, exist_ok=True)
        self._hashing = WriteBehind(_HASH_BYTES, "dopkit-hash")
        super().__init__(folder, shards, journal, place, partial(_OpenShard, hashing=self._hashing))
        self._shards = shards
        gone = elsewhere or {}
        self._on_shard = on_shard
        self._finished = {file: gone[file.shard.file] for file in self._files if file.shard.file in gone}
        self.done = self.done.union(*_side_by_side(self._good, self._files))
        self._missing = {file: {tensor.name for tensor in file.shard.tensors} - self.done for file in self._files}
        self._finish_complete()

    def _good(self, file: _OpenShard) -> set[str]:
        """The tensors of a shard that an earlier run completed."""
        tensors = file.shard.tensors
        good = {tensor.name for tensor in tensors if file in self._finished or self._still_good(file, tensor)}
        file.close()  # as in ``make``
        return good

    def _still_good(self, file: _OpenShard, tensor: Placed) -> bool:
        entry = self._journal.entries.get(self.key(tensor.name))
        return entry is not None and file.check(tensor, int(entry["crc"]))

    def complete(self, name: str, record: dict[str, Any]) -> None:
        if name in self.done:
            return
        super().complete(name, record)
        self._missing[self._place[name][0]].discard(name)
        self._finish_complete()

    def preallocate(self) -> None:
        """Make every file that is not there, so that other processes can write to it."""
        for file in self._files:
            if file not in self._finished:
                with self._failing():
                    file.make()

    def take_over(self, keys: Collection[str]) -> None:
        """Look at what other processes have written: those ``keys`` of the journal that are of this writer.

        Raises OutputError when it is not there.
        """
        waiting = [file for file in self._files if file not in self._finished]
        for file, names in zip(waiting, _side_by_side(partial(self._taken_over, keys), waiting), strict=True):
            self.done |= names
            self._missing[file] -= names
        self._finish_complete()

    def _taken_over(self, keys: Collection[str], file: _OpenShard) -> set[str]:
        file.close()  # a network's file system shows what others wrote to those who open anew
        names = set()
        for tensor in file.shard.tensors:  # those of this process as well: the hash goes on with them
            if tensor.name not in self.done and self.key(tensor.name) not in keys:
                continue
            if not self._still_good(file, tensor):
                raise OutputError(
                    f"{file.path} does not hold what another process wrote there",
                    [Problem(tensor.name, "its bytes are not those that were written", _NOT_SHARED)],
                )
            names.add(tensor.name)
        return names

    def close(self) -> None:
        self._hashing.close()
        super().close()

    def _finish_complete(self) -> None:
        for file, missing in self._missing.items():
            if not missing and file not in self._finished:
                self._finish(file)

    def _finish(self, shard: _OpenShard) -> None:
        with self._failing():
            self._finished[shard] = shard.finish()
        if self._on_shard is not None:
            self._on_shard(self._finished[shard], shard.path)

    def finish(self) -> list[ShardFile]:
        """Write the index. Call when every tensor is complete."""
        assert self.done == self._place.keys(), "finish() before every tensor is complete"
        if index := index_json(self._shards):
            write_text(self._folder / INDEX_FILE, index)
        return [self._finished[shard] for shard in self._files]


class _OpenShard(OpenFile):
    """One shard file. Its hash follows the writing, in a thread of its own, as long as that goes from front to back."""

    def __init__(self, folder: Path, shard: Shard, hashing: WriteBehind) -> None:
        super().__init__(folder, shard)
        self._hashing = hashing
        self._hash = hashlib.sha256(shard.header)
        self._hashed = len(shard.header)  # bytes from the front that are in the hash

    def check(self, tensor: Placed, crc: int) -> bool:
        """Whether the bytes that an earlier run wrote for a tensor are all there."""
        if not self.path.exists() or self.path.stat().st_size != self.shard.size:
            return False
        self._hashing.drain()
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
        if follows := self._hashed == offset:
            self._hashing.put(len(data), partial(self._hash.update, data))
            self._hashed = offset + len(data)
        super().write(offset, data)
        if follows and len(data) > _HASH_BYTES:
            self._hashing.drain()  # what is large is not held, uncounted, while the next is made

    def finish(self) -> ShardFile:
        self._hashing.drain()
        super().write(0, memoryview(self.shard.header))
        for chunk in self._chunks(self._hashed, self.shard.size):
            self._hash.update(chunk)
        self.close()
        return ShardFile(self.shard.file, self.shard.size, self._hash.hexdigest())

    def make(self) -> None:
        """The file at its full size; what is in it stays."""
        self._opened()
        self.close()  # there may be more of them than a process may have open

    def _open(self) -> int:
        """The file, made at its full size at the first write: a full disk shows before the work, not after.

        It is allocated once alone: where a file system cannot, the C library writes zeros, which must not happen
        while others write.
        """
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        if os.fstat(handle).st_size != self.shard.size:
            _allocate(handle, self.shard.size)
        return handle

    def _chunks(self, start: int, stop: int) -> Iterator[bytes]:
        handle = self._opened()
        while start < stop:
            chunk = os.pread(handle, min(_CHUNK, stop - start), start)
            assert chunk, f"{self.path} is shorter than it was made"
            yield chunk
            start += len(chunk)


def _side_by_side(call: Callable[[_OpenShard], set[str]], files: Sequence[_OpenShard]) -> list[set[str]]:
    """What a call gives for each shard; raises what the first of them in this order raised."""
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1), "dopkit-check") as threads:
        return list(threads.map(call, files))


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
    """Write a small file so that it is there whole or not at all, also while another process writes it.

    Raises OutputError.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        with writing(path):
            beside.write_text(text, encoding="utf-8")
            beside.rename(path)
    finally:
        with suppress(OSError):
            beside.unlink()  # what broke off


def copy_file(source: Path, target: Path) -> None:
    """Copy a file into a folder that nobody else writes to, so that it is there whole or not at all.

    What a kill left of it is written over. Raises OutputError.
    """
    beside = target.with_name(f"{target.name}.new")
    with writing(target):
        shutil.copyfile(source, beside)
        beside.rename(target)


_NOT_SHARED = "All processes must write to one folder: is it on storage that every machine shares?"
