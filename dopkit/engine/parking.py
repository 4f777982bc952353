"""Matrices that lie in scratch files while they are not needed, so that a merge takes less memory.

Written out and read back: the same bytes at another place. Knows tensors and a folder, not what is computed.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch

from dopkit.errors import OutputError, Problem
from dopkit.linalg.parking import Park
from dopkit.units import show_size

_CHUNK = 1 << 28  # the kernel takes at most 2 GiB at once
_SMALL = 1 << 16  # bytes that are not worth a file

_MMAP_THRESHOLD = -3  # the number of glibc's parameter
_APART = 1 << 20  # bytes from which on a block is by itself
_USUAL = 32 << 20  # what glibc's own rule comes to once a large block was freed

_Transfer = Callable[[int, list[memoryview], int], int]


@dataclass(frozen=True)
class _Parked:
    storage: torch.UntypedStorage  # empty, and kept: no other one gets its address meanwhile
    nbytes: int
    file: IO[bytes]


class ScratchPark(Park):
    """Lays tensors of the CPU into nameless files in ``folder``, which are gone with the process at the latest.

    The memory of a tensor that is away is free. All that share it are away with it. ``forget`` closes the files.
    """

    def __init__(self, folder: Path, small: int = _SMALL) -> None:
        self._folder, self._small = folder, small
        self._parked: dict[int, _Parked] = {}

    def away(self, *tensors: torch.Tensor | None) -> None:
        """Raises OutputError where the disk does not take it."""
        for storage in _storages(tensors):
            if storage.nbytes() > self._small and storage.resizable():
                self._put(storage)

    def here(self, *tensors: torch.Tensor | None) -> None:
        for storage in _storages(tensors):
            if (parked := self._parked.pop(_key(storage), None)) is not None:
                with parked.file:
                    storage.resize_(parked.nbytes)
                    _transfer(os.preadv, parked.file, storage)

    def forget(self) -> None:
        for parked in self._parked.values():
            parked.file.close()
        self._parked.clear()

    def _put(self, storage: torch.UntypedStorage) -> None:
        nbytes = storage.nbytes()
        try:
            file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115  it is closed by others
            try:
                _transfer(os.pwritev, file, storage)
            except BaseException:
                file.close()
                raise
        except OSError as error:
            what = f"{show_size(nbytes)} cannot be laid aside in {self._folder}: {error.strerror}"
            remedy = "Free some disk space, or give the merge more memory."
            raise OutputError("a matrix finds no place on the disk", [Problem("", what, remedy)]) from error
        self._parked[_key(storage)] = _Parked(storage, nbytes, file)
        storage.resize_(0)


@contextmanager
def freed_at_once() -> Iterator[None]:
    """Within, the kernel has the memory of a large tensor again as soon as nobody holds it.

    glibc keeps blocks below some 32 MB otherwise, and between others that are in use: three times as much as is in use
    was measured. Elsewhere nothing changes. For the whole process; a block by itself costs the kernel's time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        yield
        return
    mallopt(_MMAP_THRESHOLD, _APART)
    try:
        yield
    finally:
        mallopt(_MMAP_THRESHOLD, _USUAL)


def movable(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or a copy of it where torch cannot give its memory back because others have looked at it."""
    return tensor if tensor.untyped_storage().resizable() else tensor.clone()


def _storages(tensors: Sequence[torch.Tensor | None]) -> list[torch.UntypedStorage]:
    """Their memory, each once."""
    found = [tensor.untyped_storage() for tensor in tensors if tensor is not None and tensor.device.type == "cpu"]
    return list({_key(storage): storage for storage in found}.values())


def _key(storage: torch.UntypedStorage) -> int:
    return int(storage._cdata)


def _transfer(how: _Transfer, file: IO[bytes], storage: torch.UntypedStorage) -> None:
    """Between the beginning of a file and the whole of a storage. Raises OSError."""
    # not through numpy: what that has looked at, torch never makes smaller again
    view = memoryview((ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr()))
    done = 0
    while done < len(view):
        moved = how(file.fileno(), [view[done : done + _CHUNK]], done)
        if moved == 0:
            raise OSError(0, "no more bytes go through")
        done += moved
