"""Tensors out of weight files: safetensors by positioned reads, pickles by torch's restricted, mapped loader.

A positioned read (``pread``) brings exactly one tensor, or some rows of it, into memory of its own; nothing stays
resident afterwards, unlike with a memory map. Knows paths and specs, not models.
"""

from __future__ import annotations

import os
import threading
import weakref
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dopkit.errors import CheckpointError, Problem
from dopkit.specs import DTYPES, LFS_POINTER, NOT_PULLED, TRUNCATED, TensorSpec, header_length, parse_header

_LARGEST_READ = 1 << 30  # the kernel gives at most 2 GiB at once
_MOST_OPEN = 4  # files of one model: a merge goes from one to the next, and a process may have few hundred open
_TORCH_NAMES = {f"torch.{dtype.torch}": name for name, dtype in DTYPES.items()}


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a safetensors dtype name."""
    dtype: torch.dtype = getattr(torch, DTYPES[name].torch)
    return dtype


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor with at least one element, writable, without a copy."""
    # flattened first: a scalar cannot be viewed as another dtype
    return memoryview(tensor.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def read_header(path: Path, file: str) -> tuple[bytes, dict[str, TensorSpec]]:
    """The header of a local safetensors file: its raw JSON, and its tensors as those of ``file``.

    Raises CheckpointError when the file cannot be read, is truncated, or is none.
    """
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            raw = stream.read(header_length(stream.read(8), str(path), size))
    except OSError as error:
        raise _unreadable(path, error) from error
    return raw, parse_header(raw, file, size, str(path))


def placed(spec: TensorSpec, rows: tuple[int, int] | None) -> tuple[torch.Tensor, int]:
    """Memory for the tensor or some of its rows, and where in the file their bytes begin. Raises IndexError."""
    start, stop = _checked(spec, rows)
    shape = (stop - start, *spec.shape[1:]) if spec.shape else ()
    return torch.empty(shape, dtype=torch_dtype(spec.dtype)), spec.offset + start * (spec.nbytes // max(1, spec.rows))


class _Handle:
    """An open file, closed when nobody has it any more: never under somebody who reads."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.number)


class SafetensorsFiles:
    """Safetensors files read by position, a few of them open at a time. ``paths``: a spec's file to its place."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._paths = paths
        self._handles: dict[str, _Handle] = {}  # the one that was used last stands last
        self._lock = threading.Lock()

    def read(self, spec: TensorSpec, rows: tuple[int, int] | None) -> torch.Tensor:
        """See ``Checkpoint.read``."""
        tensor, start = placed(spec, rows)
        if tensor.numel():
            self._fill(spec, bytes_of(tensor), start)
        return tensor

    def _fill(self, spec: TensorSpec, view: memoryview, start: int) -> None:
        path = self._paths[spec.file]
        done = 0
        try:
            handle = self._handle(spec.file)
            while done < len(view):
                got = os.preadv(handle.number, [view[done : done + _LARGEST_READ]], start + done)
                if got == 0:
                    raise CheckpointError(f"{path} ends in the middle of {spec.name}", [Problem("", TRUNCATED)])
                done += got
        except OSError as error:
            raise _unreadable(path, error) from error

    def _handle(self, file: str) -> _Handle:
        with self._lock:
            handle = self._handles.pop(file, None) or _Handle(self._paths[file])
            self._handles[file] = handle
            while len(self._handles) > _MOST_OPEN:
                del self._handles[next(iter(self._handles))]
            return handle

    def close(self) -> None:
        """Let go of the files; a later read opens them again."""
        with self._lock:
            self._handles.clear()


class PickledFiles:
    """``pytorch_model.bin`` files through torch's restricted unpickler: tensors only, no code, storages mapped."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._paths = paths
        self._tensors: dict[str, dict[str, torch.Tensor]] = {}
        self._lock = threading.Lock()

    def header(self, file: str) -> dict[str, TensorSpec]:
        """The tensors of one file. Raises CheckpointError when it is no plain mapping of names to tensors."""
        path = self._paths[file]
        return {name: pickled_spec(name, tensor, file, path) for name, tensor in self._mapping(file).items()}

    def read(self, spec: TensorSpec, rows: tuple[int, int] | None) -> torch.Tensor:
        """See ``Checkpoint.read``."""
        return copied(spec, self._mapping(spec.file)[spec.name], rows)

    def _mapping(self, file: str) -> dict[str, torch.Tensor]:
        with self._lock:
            if file not in self._tensors:
                self._tensors[file] = _load_pickle(self._paths[file])
            return self._tensors[file]

    def close(self) -> None:
        """Let go of the maps; a later read makes them again."""
        with self._lock:
            self._tensors.clear()


def _checked(spec: TensorSpec, rows: tuple[int, int] | None) -> tuple[int, int]:
    """The rows asked for: beyond its end a file goes on with another tensor's bytes."""
    start, stop = (0, spec.rows) if rows is None else rows
    if not 0 <= start <= stop <= spec.rows:
        raise IndexError(f"{spec.name} has {spec.rows} rows; {start} to {stop} was asked for")
    return start, stop


def _load_pickle(path: Path) -> dict[str, torch.Tensor]:
    state = load_pickled(path)
    if not isinstance(state, dict):
        raise _refused(path, f"it holds a {type(state).__name__}, not a mapping of names to tensors", _RESAVE)
    return {_name(name, value, path): value.detach() for name, value in state.items()}


def load_pickled(path: Path) -> Any:
    """What ``torch.save`` wrote: mapped tensors, and plain data around them. No code is run. Raises CheckpointError."""
    try:
        _check_format(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except OSError as error:
        raise _unreadable(path, error) from error
    except CheckpointError:
        raise
    except Exception as error:  # torch raises many kinds for a file that is not what it expects
        # The first paragraph is advice on how to load it unsafely; the reason follows.
        reasons = [line for line in str(error).splitlines() if "GLOBAL" in line or "nsupported" in line]
        what = "it holds more than tensors" + (f" ({reasons[0].strip()})" if reasons else "")
        raise _refused(path, what, _RESAVE) from error


_RESAVE = "Save the model again as safetensors, from a source that you trust."


def _check_format(path: Path) -> None:
    """Refuse what torch cannot map into memory."""
    if zipfile.is_zipfile(path):
        return
    with path.open("rb") as stream:
        first = stream.read(8)
    if first == LFS_POINTER:
        raise _refused(path, *NOT_PULLED)
    if first[:1] == b"\x80":
        raise _refused(path, "it is in PyTorch's old format (before 1.6), which cannot be read in parts", _RESAVE)
    if not first or first[:4] == b"PK\x03\x04":
        raise _refused(path, f"it has {path.stat().st_size:,} bytes and lacks its end", TRUNCATED)
    raise _refused(path, "it is not a file that torch.save wrote")


def _name(name: Any, value: Any, path: Path) -> str:
    """The name of one entry of a pickle, when both name and value are what a model holds."""
    if not isinstance(name, str) or not name.isprintable() or name == "__metadata__":
        raise _refused(path, f"{name!r} is not the name of a tensor")
    if not isinstance(value, torch.Tensor):
        remedy = "Save that alone, as safetensors." if isinstance(value, dict) else ""
        raise _refused(path, f"{name!r} holds {type(value).__name__}, no tensor: this is more than a model", remedy)
    if value.layout is not torch.strided or value.device.type != "cpu":
        raise _refused(path, f"{name} is not a plain tensor ({value.layout}, on {value.device})")
    return name


def copied(spec: TensorSpec, tensor: torch.Tensor, rows: tuple[int, int] | None) -> torch.Tensor:
    """A copy of a mapped tensor or some of its rows: tensors of a pickle may share their storage. Raises IndexError."""
    start, stop = _checked(spec, rows)
    part = tensor[start:stop] if spec.shape else tensor
    return part.clone(memory_format=torch.contiguous_format)


def pickled_spec(name: str, tensor: torch.Tensor, file: str, path: Path) -> TensorSpec:
    """What a mapped tensor is, out of the ``file`` of a model. Raises CheckpointError for a dtype nobody knows."""
    dtype = _TORCH_NAMES.get(str(tensor.dtype))
    if dtype is None:
        raise _refused(path, f"{name} has dtype {tensor.dtype}, which dopkit does not know")
    return TensorSpec(name, dtype, tuple(tensor.shape), file, -1)


def _refused(path: Path, what: str, remedy: str = "") -> CheckpointError:
    return CheckpointError("cannot read a pickled checkpoint", [Problem(str(path), what, remedy)])


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"cannot read {path}: {error.strerror or error}")
