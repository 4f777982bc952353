"""Unit tests for dopkit.layout: tensors to shards, with literal numbers and no files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open
from transformers.utils.hub import get_checkpoint_shard_files

from dopkit.layout import INDEX_FILE, Shard, index_json, lay_out
from dopkit.specs import DTYPES


def tensor(name: str, size: int, dtype: str = "U8") -> tuple[str, str, tuple[int, ...]]:
    return name, dtype, (size,)


def sizes(numbers: list[int], limit: int) -> list[list[int]]:
    """How tensors of so many bytes are spread over shards."""
    shards = lay_out([tensor(f"t{index}", size) for index, size in enumerate(numbers)], limit)
    return [[placed.nbytes for placed in shard.tensors] for shard in shards]


@pytest.mark.parametrize(
    ("numbers", "shards"),
    [
        ([], []),
        ([4], [[4]]),
        ([4, 6], [[4, 6]]),
        ([4, 7], [[4], [7]]),
        ([10, 1], [[10], [1]]),
        ([6, 6, 2, 6, 2, 2], [[6], [6, 2], [6, 2, 2]]),
        ([3, 25, 3, 3], [[3], [25], [3, 3]]),  # larger than a shard: one of its own
        ([25], [[25]]),
        ([10, 0, 0], [[10, 0, 0]]),
        ([25, 0, 3], [[25], [0, 3]]),
    ],
)
def test_shards_are_filled_in_order(numbers: list[int], shards: list[list[int]]) -> None:
    assert sizes(numbers, 10) == shards


def test_files_are_named_as_transformers_names_them() -> None:
    def names(count: int) -> list[str]:
        return [shard.file for shard in lay_out([tensor(f"t{index}", 1) for index in range(count)], 1)]

    assert names(1) == ["model.safetensors"]
    assert names(2) == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert names(12)[11] == "model-00012-of-00012.safetensors"


def test_offsets_follow_the_header_without_a_hole() -> None:
    (shard,) = lay_out([tensor("a", 3), tensor("b", 5), ("s", "U8", ()), tensor("c", 2)], 100)
    start = len(shard.header)
    assert start % 8 == 0
    assert [(placed.name, placed.offset - start, placed.nbytes) for placed in shard.tensors] == [
        ("a", 0, 3),
        ("b", 3, 5),
        ("s", 8, 1),
        ("c", 9, 2),
    ]
    assert shard.size == start + 11


def test_wider_dtypes_come_first_so_that_all_are_aligned() -> None:
    names = ["U8", "BF16", "F64", "BOOL", "F32", "I16", "I64", "F8_E4M3", "F16"]
    (shard,) = lay_out([tensor(name, 3, name) for name in names], 1000)
    assert [placed.name for placed in shard.tensors] == [
        "F64",
        "I64",
        "F32",
        "BF16",
        "I16",
        "F16",
        "U8",
        "BOOL",
        "F8_E4M3",
    ]
    assert all(placed.offset % DTYPES[placed.dtype].size == 0 for placed in shard.tensors)


def write(shards: tuple[Shard, ...], folder: Path) -> None:
    for shard in shards:
        body = b"".join(bytes([index]) * placed.nbytes for index, placed in enumerate(shard.tensors))
        (folder / shard.file).write_bytes(shard.header + body)


def test_the_library_reads_each_tensor_at_its_place(tmp_path: Path) -> None:
    shards = lay_out([tensor("a", 3), ("b", "I8", (2, 4)), ("none", "I8", (0, 4)), tensor("c", 6)], 11)
    write(shards, tmp_path)
    found = {}
    for shard in shards:
        assert (tmp_path / shard.file).stat().st_size == shard.size
        with safe_open(tmp_path / shard.file, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
            found |= {name: (shard.file[:11], opened.get_tensor(name).tolist()) for name in opened.keys()}  # noqa: SIM118
    assert found == {
        "a": ("model-00001", [0, 0, 0]),
        "b": ("model-00001", [[1] * 4, [1] * 4]),
        "none": ("model-00001", []),
        "c": ("model-00002", [0] * 6),
    }


def test_the_index_says_where_each_tensor_is() -> None:
    shards = lay_out([("z", "F32", (2, 3)), ("a", "BF16", (4,)), ("s", "F32", ())], 30)
    text = index_json(shards)
    assert text is not None
    assert text.endswith("}\n")
    assert json.loads(text) == {
        "metadata": {"total_size": 36, "total_parameters": 11},
        "weight_map": {
            "a": "model-00002-of-00002.safetensors",
            "s": "model-00002-of-00002.safetensors",
            "z": "model-00001-of-00002.safetensors",
        },
    }
    assert list(json.loads(text)["weight_map"]) == ["a", "s", "z"]


def test_a_single_file_needs_no_index() -> None:
    assert index_json(lay_out([tensor("a", 3)], 10)) is None


def test_transformers_accepts_the_index(tmp_path: Path) -> None:
    shards = lay_out([tensor("a", 3), tensor("b", 3)], 3)
    write(shards, tmp_path)
    (tmp_path / INDEX_FILE).write_text(index_json(shards) or "")
    files, metadata = get_checkpoint_shard_files(str(tmp_path), str(tmp_path / INDEX_FILE))
    assert [Path(file).name for file in files] == [shard.file for shard in shards]
    assert metadata["total_size"] == 6
    assert metadata["all_checkpoint_keys"] == ["a", "b"]
