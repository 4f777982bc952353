"""Tensors as headers describe them, and the safetensors header itself: parsed with suspicion, built exactly.

Knows neither torch nor where the bytes come from. Format: 8 bytes little-endian header length, a JSON
object padded with spaces, then the tensors back to back (https://huggingface.co/docs/safetensors).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dopkit.errors import CheckpointError, Problem, count

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself
_MAX_AXES = 64  # numpy's limit; torch models have at most six or so
_MAX_BYTES = 1 << 62  # of one tensor; beyond it torch's own arithmetic overflows


@dataclass(frozen=True)
class DType:
    """A tensor dtype under its safetensors name."""

    size: int  # bytes per element
    torch: str  # attribute of the torch module
    floating: bool


DTYPES: Mapping[str, DType] = {
    "F64": DType(8, "float64", True),
    "F32": DType(4, "float32", True),
    "F16": DType(2, "float16", True),
    "BF16": DType(2, "bfloat16", True),
    "F8_E4M3": DType(1, "float8_e4m3fn", True),
    "F8_E5M2": DType(1, "float8_e5m2", True),
    "C64": DType(8, "complex64", False),
    "I64": DType(8, "int64", False),
    "U64": DType(8, "uint64", False),
    "I32": DType(4, "int32", False),
    "U32": DType(4, "uint32", False),
    "I16": DType(2, "int16", False),
    "U16": DType(2, "uint16", False),
    "I8": DType(1, "int8", False),
    "U8": DType(1, "uint8", False),
    "BOOL": DType(1, "bool", False),
}

MERGEABLE = ("F64", "F32", "F16", "BF16")  # what arithmetic in float32 can take in and give back


class Sized:
    """What follows from a dtype and a shape."""

    dtype: str  # a key of DTYPES
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements; a scalar has one."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * DTYPES[self.dtype].size

    @property
    def rows(self) -> int:
        """Length of the first axis; a scalar counts as one row."""
        return self.shape[0] if self.shape else 1


@dataclass(frozen=True)
class TensorSpec(Sized):
    """One tensor of a checkpoint: what it is and where its bytes lie.

    ``file`` is its name inside the model; ``offset`` is absolute in it. A pickled checkpoint has no byte offsets:
    ``offset`` is -1.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    offset: int


TRUNCATED = "The file is truncated or damaged: fetch it again."
LFS_POINTER = b"version "  # how the text begins that a clone without Git LFS leaves in place of a file
NOT_PULLED = ("it is a Git LFS pointer, not the file itself", "Run `git lfs pull` in that folder.")


def header_length(first: bytes, shown: str, file_size: int) -> int:
    """The length of the JSON part from the first 8 bytes (or more) of a file.

    Raises CheckpointError naming ``shown`` when that cannot be the length of a header in ``file_size`` bytes.
    """
    if len(first) < 8:
        raise _bad(shown, f"it has only {count(file_size, 'byte')}", TRUNCATED)
    if first[:8] == LFS_POINTER:
        raise _bad(shown, *NOT_PULLED)
    length = int.from_bytes(first[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise _bad(shown, f"its header claims {length:,} bytes; this is not a safetensors file")
    if 8 + length > file_size:
        raise _bad(shown, f"its header of {length:,} bytes does not fit in {file_size:,}", TRUNCATED)
    return length


def parse_header(raw: bytes, file: str, file_size: int, shown: str = "") -> dict[str, TensorSpec]:
    """Read the JSON part of a safetensors header (``raw``, without the 8 length bytes), in order of offset.

    Every offset is checked against the shape, against its neighbours and against ``file_size``, so that a
    reader may trust the result. Raises CheckpointError naming ``shown`` (or ``file``) when anything disagrees.
    """
    try:
        return _parse(raw, file, file_size)
    except _Wrong as error:
        raise _bad(shown or file, *error.args) from None


def build_header(tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """The whole header (length bytes included) of a file that holds ``(name, dtype, shape)`` in this order."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, dtype, shape in tensors:
        assert name not in header, f"{name} twice in one file"
        end = position + math.prod(shape) * DTYPES[dtype].size
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)  # tensors start at a multiple of 8
    return len(raw).to_bytes(8, "little") + raw


class _Wrong(Exception):
    """What is wrong with a header, and maybe the remedy."""


def _parse(raw: bytes, file: str, file_size: int) -> dict[str, TensorSpec]:
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise _Wrong(f"its header is not valid JSON ({error})") from None
    if not isinstance(header, dict):
        raise _Wrong("its header is not a JSON object")
    header.pop("__metadata__", None)
    position = 8 + len(raw)
    specs = [_entry(name, entry, file, position) for name, entry in header.items()]
    specs.sort(key=lambda spec: (spec.offset, spec.nbytes))  # an empty tensor stands before its neighbour
    for spec in specs:
        if spec.offset != position:
            raise _Wrong(f"tensor {spec.name!r} overlaps another one or leaves a hole")
        position += spec.nbytes
    if position != file_size:
        raise _Wrong(f"it has {file_size:,} bytes, but its header describes {position:,}", TRUNCATED)
    return {spec.name: spec for spec in specs}


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise ValueError(f"{name!r} occurs twice")
        result[name] = value
    return result


def _entry(name: str, entry: Any, file: str, start: int) -> TensorSpec:
    if not name.isprintable():  # control characters, or halves of a surrogate pair: it could not be written again
        raise _Wrong(f"the tensor name {name!r} is not plain text")
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [begin, end]}:
            pass
        case _:
            raise _Wrong(f"the header entry of tensor {name!r} is malformed")
    if dtype not in DTYPES:
        raise _Wrong(f"tensor {name!r} has dtype {dtype!r}, which dopkit does not know")
    if len(shape) > _MAX_AXES:
        raise _Wrong(f"tensor {name!r} has {len(shape):,} axes")
    # bool is an int to Python, and a float offset would pass a mere comparison
    if any(type(number) is not int or number < 0 for number in (*shape, begin, end)):
        raise _Wrong(f"tensor {name!r} has a shape or offset that is not a natural number")
    # an empty tensor may not be huge along its other axes either
    if end > _MAX_BYTES or DTYPES[dtype].size * math.prod(length or 1 for length in shape) > _MAX_BYTES:
        raise _Wrong(f"tensor {name!r} is too large to exist")
    spec = TensorSpec(name, dtype, tuple(shape), file, start + begin)
    if end - begin != spec.nbytes:
        raise _Wrong(f"tensor {name!r} spans {end - begin:,} bytes, its shape needs {spec.nbytes:,}")
    return spec


def _bad(shown: str, what: str, remedy: str = "") -> CheckpointError:
    return CheckpointError("cannot read a safetensors file", [Problem(shown, what, remedy)])
