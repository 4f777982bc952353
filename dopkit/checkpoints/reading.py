"""Tensors out of weight files: safetensors by positioned reads, pickles by torch's restricted, mapped loader.

A positioned read (``pread``) brings exactly one tensor, or some rows of it, into memory of its own; nothing stays
resident afterwards, unlike with a memory map. Knows paths and specs, not models.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path

import torch

from dopkit.errors import CheckpointError, Problem
from dopkit.specs import DTYPES, TRUNCATED, TensorSpec, header_length, parse_header

_LARGEST_READ = 1 << 30  # the kernel gives at most 2 GiB at once
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
    """The header of a local safetensors file: its raw JSON, and its tensors. Raises CheckpointError."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = header_length(stream.read(8), str(path), size)
        raw = stream.read(length)
    specs = parse_header(raw, str(path), size)
    return raw, {name: TensorSpec(name, spec.dtype, spec.shape, file, spec.offset) for name, spec in specs.items()}


class SafetensorsFiles:
    """Open safetensors files, read by position. ``paths`` maps the file of a spec to where it lies."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._paths = paths
        self._handles: dict[str, int] = {}
        self._lock = threading.Lock()

    def read(self, spec: TensorSpec, rows: tuple[int, int] | None) -> torch.Tensor:
        start, shape = spec.offset, spec.shape
        if rows is not None and shape:
            start += rows[0] * (spec.nbytes // spec.rows if spec.rows else 0)
            shape = (rows[1] - rows[0], *shape[1:])
        tensor = torch.empty(shape, dtype=torch_dtype(spec.dtype))
        if tensor.numel():
            self._fill(spec, bytes_of(tensor), start)
        return tensor

    def _fill(self, spec: TensorSpec, view: memoryview, start: int) -> None:
        handle = self._handle(spec.file)
        done = 0
        while done < len(view):
            got = os.preadv(handle, [view[done : done + _LARGEST_READ]], start + done)
            if got == 0:
                path = self._paths[spec.file]
                raise CheckpointError(f"{path} ends in the middle of {spec.name}", [Problem("", TRUNCATED)])
            done += got

    def _handle(self, file: str) -> int:
        with self._lock:
            if file not in self._handles:
                self._handles[file] = os.open(self._paths[file], os.O_RDONLY)
            return self._handles[file]

    def close(self) -> None:
        with self._lock:
            for handle in self._handles.values():
                os.close(handle)
            self._handles.clear()


class PickledFiles:
    """Opened ``pytorch_model.bin`` files: a restricted unpickler (weights only, no code), storages mapped."""

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._tensors: dict[str, torch.Tensor] = {}
        self.specs: dict[str, TensorSpec] = {}
        for file, path in paths.items():
            for name, tensor in _load_pickle(path).items():
                self.specs[name] = _spec(name, tensor, file, path)
                self._tensors[name] = tensor

    def read(self, spec: TensorSpec, rows: tuple[int, int] | None) -> torch.Tensor:
        tensor = self._tensors[spec.name]
        return (tensor if rows is None or not spec.shape else tensor[rows[0] : rows[1]]).clone().contiguous()

    def close(self) -> None:
        self._tensors.clear()


def _load_pickle(path: Path) -> dict[str, torch.Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many kinds for a file that is not what it expects
        what = str(error).strip().splitlines()[0]
        remedy = "Save the model again as safetensors, from a source that you trust."
        raise CheckpointError(f"cannot read {path} safely", [Problem("", what, remedy)]) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise CheckpointError(f"{path} is not a plain mapping of names to tensors")
    return {str(name): tensor for name, tensor in state.items()}


def _spec(name: str, tensor: torch.Tensor, file: str, path: Path) -> TensorSpec:
    dtype = _TORCH_NAMES.get(str(tensor.dtype))
    if dtype is None:
        raise CheckpointError(f"{path}: {name} has dtype {tensor.dtype}, which dopkit does not know")
    return TensorSpec(name, dtype, tuple(tensor.shape), file, -1)
