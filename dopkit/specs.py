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

from dopkit.errors import CheckpointError, Problem

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself


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


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a checkpoint: what it is and where its bytes lie.

    ``offset`` is absolute in ``file``. A pickled checkpoint has no byte offsets: ``offset`` is -1.
    """

    name: str
    dtype: str  # a key of DTYPES
    shape: tuple[int, ...]
    file: str
    offset: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * DTYPES[self.dtype].size

    @property
    def rows(self) -> int:
        """Length of the first axis; a scalar counts as one row."""
        return self.shape[0] if self.shape else 1


def parse_header(raw: bytes, file: str, file_size: int) -> dict[str, TensorSpec]:
    """Read the JSON part of a safetensors header (``raw``, without the 8 length bytes).

    Every offset is checked against the shape, against its neighbours and against ``file_size``, so that a
    reader may trust the result. Raises CheckpointError naming ``file`` when anything disagrees.
    """
    start = 8 + len(raw)
    try:
        header = json.loads(raw, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise _bad(file, f"its header is not valid JSON ({error})") from None
    if not isinstance(header, dict):
        raise _bad(file, "its header is not a JSON object")
    header.pop("__metadata__", None)
    specs = [_entry(name, entry, file, start) for name, entry in header.items()]
    specs.sort(key=lambda spec: (spec.offset, spec.nbytes))
    position = start
    for spec in specs:
        if spec.offset != position:
            raise _bad(file, f"tensor {spec.name!r} overlaps another one or leaves a hole")
        position += spec.nbytes
    if position != file_size:
        raise _bad(file, f"it has {file_size:,} bytes, but its header describes {position:,}", TRUNCATED)
    return {spec.name: spec for spec in specs}


TRUNCATED = "The file is truncated or damaged: fetch it again."


def header_length(first: bytes, file: str, file_size: int) -> int:
    """The length of the JSON part from the first 8 bytes of a file. Raises CheckpointError."""
    if len(first) < 8:
        raise _bad(file, f"it has only {file_size} bytes", TRUNCATED)
    length = int.from_bytes(first[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise _bad(file, f"its header claims {length:,} bytes; this is not a safetensors file")
    if 8 + length > file_size:
        raise _bad(file, f"its header of {length:,} bytes does not fit in {file_size:,}", TRUNCATED)
    return length


def build_header(tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """The whole header (length bytes included) of a file that holds ``(name, dtype, shape)`` in this order."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, dtype, shape in tensors:
        end = position + math.prod(shape) * DTYPES[dtype].size
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)  # tensors start at a multiple of 8
    return len(raw).to_bytes(8, "little") + raw


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result


def _entry(name: str, entry: Any, file: str, start: int) -> TensorSpec:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise _bad(file, f"the header entry of tensor {name!r} is malformed") from None
    if dtype not in DTYPES:
        raise _bad(file, f"tensor {name!r} has dtype {dtype!r}, which dopkit does not know")
    # bool is an int to Python, and a float offset would pass a mere comparison
    if any(type(number) is not int or number < 0 for number in (*shape, begin, end)):
        raise _bad(file, f"tensor {name!r} has a shape or offset that is not a natural number")
    spec = TensorSpec(name, dtype, shape, file, start + begin)
    if end - begin != spec.nbytes:
        raise _bad(file, f"tensor {name!r} spans {end - begin:,} bytes, its shape needs {spec.nbytes:,}")
    return spec


def _bad(file: str, what: str, remedy: str = "") -> CheckpointError:
    return CheckpointError("cannot read a safetensors file", [Problem(file, what, remedy)])
