"""From tensors to files: which shard each one goes to, at which byte, and the index that says so.

Pure arithmetic on sizes. Offsets are known before the first byte is computed, so shards can be preallocated and
written in any order, by any number of processes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dopkit.specs import DTYPES, Sized, build_header

INDEX_FILE = "model.safetensors.index.json"
METADATA = {"format": "pt"}  # older readers insist on it


@dataclass(frozen=True)
class Placed(Sized):
    """A tensor at its place: ``offset`` is absolute in the file of its shard."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class Shard:
    """One output file: its header and the tensors behind it, in file order."""

    file: str
    header: bytes
    tensors: tuple[Placed, ...]

    @property
    def size(self) -> int:
        return len(self.header) + sum(tensor.nbytes for tensor in self.tensors)


Tensor = tuple[str, str, tuple[int, ...]]  # name, dtype, shape


def lay_out(tensors: Sequence[Tensor], max_shard_size: int) -> tuple[Shard, ...]:
    """Fill shards in the given order, each up to ``max_shard_size`` bytes of tensors.

    A tensor larger than that gets a shard of its own. Within a shard wider dtypes come first, so that every tensor
    is aligned to its element size.
    """
    groups: list[list[Tensor]] = []
    room = 0
    for tensor in tensors:
        nbytes = _nbytes(tensor)
        if not groups or nbytes > room:
            groups.append([])
            room = max_shard_size
        groups[-1].append(tensor)
        room -= nbytes
    return tuple(_shard(file, group) for file, group in zip(_names(len(groups)), groups, strict=True))


def index_json(shards: Sequence[Shard]) -> str | None:
    """The text of the index file, or None when a single file needs none."""
    if len(shards) == 1:
        return None
    tensors = [tensor for shard in shards for tensor in shard.tensors]
    metadata = {
        "total_size": sum(tensor.nbytes for tensor in tensors),
        "total_parameters": sum(math.prod(tensor.shape) for tensor in tensors),
    }
    weight_map = {tensor.name: shard.file for shard in shards for tensor in shard.tensors}
    return json.dumps({"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}, indent=2) + "\n"


def _nbytes(tensor: Tensor) -> int:
    _, dtype, shape = tensor
    return math.prod(shape) * DTYPES[dtype].size


def _names(count: int) -> Iterable[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _shard(file: str, group: list[Tensor]) -> Shard:
    ordered = sorted(group, key=lambda tensor: -DTYPES[tensor[1]].size)  # stable: keeps the order otherwise
    header = build_header(ordered, METADATA)
    placed = []
    position = len(header)
    for name, dtype, shape in ordered:
        placed.append(Placed(name, dtype, shape, position))
        position += placed[-1].nbytes
    return Shard(file, header, tuple(placed))
