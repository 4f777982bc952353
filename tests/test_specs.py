"""Unit tests for dopkit.specs: safetensors headers, with the safetensors library as the reference."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, save

from dopkit.errors import CheckpointError
from dopkit.specs import DTYPES, MAX_HEADER_BYTES, TensorSpec, build_header, header_length, parse_header

Header = dict[str, Any]
TENSORS = {
    "matrix": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "half": torch.ones(5, dtype=torch.bfloat16),
    "scalar": torch.tensor(7, dtype=torch.int64),
    "empty": torch.zeros(0, 4),
    "flag": torch.tensor([True, False, True]),
}


def parse(header: Header | str | bytes, data: int) -> dict[str, TensorSpec]:
    """The specs of a file with this header and so many bytes of tensors."""
    text = header if isinstance(header, str | bytes) else json.dumps(header)
    raw = text if isinstance(text, bytes) else text.encode()
    return parse_header(raw, "model.safetensors", 8 + len(raw) + data)


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> Header:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


# What the library writes is read


def test_a_header_of_the_library_is_read() -> None:
    file = save(TENSORS, metadata={"format": "pt"})
    length = header_length(file[:8], "x", len(file))
    specs = parse_header(file[8 : 8 + length], "model.safetensors", len(file))
    assert {name: (spec.dtype, spec.shape) for name, spec in specs.items()} == {
        "matrix": ("F32", (2, 3)),
        "half": ("BF16", (5,)),
        "scalar": ("I64", ()),
        "empty": ("F32", (0, 4)),
        "flag": ("BOOL", (3,)),
    }
    for name, spec in specs.items():
        tensor = TENSORS[name]
        flat = tensor.reshape(-1).view(torch.uint8) if tensor.numel() else torch.empty(0, dtype=torch.uint8)
        assert file[spec.offset : spec.offset + spec.nbytes] == bytes(flat.tolist())
        assert (spec.name, spec.file) == (name, "model.safetensors")
        assert (spec.numel, spec.nbytes) == (tensor.numel(), tensor.numel() * tensor.element_size())
    assert [spec.rows for spec in specs.values()] == [
        TENSORS[name].shape[0] if name != "scalar" else 1 for name in specs
    ]
    assert [spec.offset for spec in specs.values()] == sorted(spec.offset for spec in specs.values())


def test_what_is_built_is_read_by_the_library(tmp_path: Path) -> None:
    tensors = [("a", "F32", (2, 3)), ("b", "BF16", (5,)), ("ü", "F16", ()), ("none", "I8", (0, 7)), ("z", "U8", (1, 2))]
    header = build_header(tensors, {"format": "pt"})
    size = sum(math.prod(shape) * DTYPES[dtype].size for _, dtype, shape in tensors)
    path = tmp_path / "x.safetensors"
    path.write_bytes(header + bytes(range(size)))
    with safe_open(path, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
        assert {name: tuple(opened.get_tensor(name).shape) for name in opened.keys()} == {  # noqa: SIM118
            name: shape for name, _, shape in tensors
        }
        assert opened.get_tensor("z").tolist() == [[36, 37]]
    assert len(header) % 8 == 0
    specs = parse_header(header[8:], "x", len(header) + size)
    assert [(name, spec.dtype, spec.shape) for name, spec in specs.items()] == tensors


def test_a_built_header_is_exact() -> None:
    raw = b'{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}}  '
    assert build_header([("a", "F16", (2,))], {}) == len(raw).to_bytes(8, "little") + raw
    assert load(build_header([], {})) == {}


def test_one_name_is_built_once() -> None:
    with pytest.raises(AssertionError, match="a twice in one file"):
        build_header([("a", "F16", (2,)), ("a", "F16", (2,))], {})


@pytest.mark.parametrize("name", DTYPES)
def test_the_dtype_table_agrees_with_torch(name: str) -> None:
    dtype = getattr(torch, DTYPES[name].torch)
    assert DTYPES[name].size == dtype.itemsize
    assert DTYPES[name].floating == dtype.is_floating_point
    assert list(load(save({"x": torch.zeros(2, dtype=dtype)}))) == ["x"]


# Length


@pytest.mark.parametrize(
    ("first", "size", "problem"),
    [
        (b"", 0, "it has only 0 bytes"),
        (b"\1", 1, "it has only 1 byte"),
        (b"\1" * 7, 7, "it has only 7 bytes"),
        ((17).to_bytes(8, "little"), 24, "its header of 17 bytes does not fit in 24"),
    ],
)
def test_a_file_without_room_for_its_header_is_truncated(first: bytes, size: int, problem: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        header_length(first, "./m/model.safetensors", size)
    assert str(caught.value).splitlines() == [
        "cannot read a safetensors file",
        f"  ./m/model.safetensors: {problem}",
        "    The file is truncated or damaged: fetch it again.",
    ]


def test_a_git_lfs_pointer_is_recognised() -> None:
    with pytest.raises(CheckpointError) as caught:
        header_length(b"version https://git-lfs.github.com/spec/v1", "m/model.safetensors", 133)
    assert str(caught.value).splitlines() == [
        "cannot read a safetensors file",
        "  m/model.safetensors: it is a Git LFS pointer, not the file itself",
        "    Run `git lfs pull` in that folder.",
    ]


def test_a_header_is_not_longer_than_the_library_allows() -> None:
    size = 10**12
    assert header_length(MAX_HEADER_BYTES.to_bytes(8, "little"), "m", size) == 100_000_000
    for length in (MAX_HEADER_BYTES + 1, 2**64 - 1):
        with pytest.raises(CheckpointError) as caught:
            header_length(length.to_bytes(8, "little"), "m", size)
        what = f"m: its header claims {length:,} bytes; this is not a safetensors file"
        assert str(caught.value) == f"cannot read a safetensors file\n  {what}"


# Hostile headers


@pytest.mark.parametrize(
    ("header", "data", "problem"),
    [
        ("", 0, "its header is not valid JSON (Expecting value: line 1 column 1 (char 0))"),
        ("[]", 0, "its header is not a JSON object"),
        ("null", 0, "its header is not a JSON object"),
        ('{"a":', 0, "its header is not valid JSON (Expecting value: line 1 column 6 (char 5))"),
        ('{"a":1,"a":2}', 0, "its header is not valid JSON ('a' occurs twice)"),
        ({"a": None}, 8, "the header entry of tensor 'a' is malformed"),
        ({"a": "dtype"}, 8, "the header entry of tensor 'a' is malformed"),
        ({"a": {"dtype": "F32", "shape": [2]}}, 8, "the header entry of tensor 'a' is malformed"),
        ({"a": entry(dtype=["F32"])}, 8, "the header entry of tensor 'a' is malformed"),
        ({"a": entry(dtype=None)}, 8, "the header entry of tensor 'a' is malformed"),
        ({"a": entry(shape="")}, 8, "the header entry of tensor 'a' is malformed"),
        ({"a": entry(shape={})}, 8, "the header entry of tensor 'a' is malformed"),
        ({"a": entry(shape=2)}, 8, "the header entry of tensor 'a' is malformed"),
        ({"a": entry(offsets=[0])}, 8, "the header entry of tensor 'a' is malformed"),
        ({"a": entry(offsets=[0, 8, 8])}, 8, "the header entry of tensor 'a' is malformed"),
        ({"a": entry(offsets={"0": 0, "8": 8})}, 8, "the header entry of tensor 'a' is malformed"),
        ({"a": entry(dtype="F4")}, 8, "tensor 'a' has dtype 'F4', which dopkit does not know"),
        ({"a": entry(shape=[-2])}, 8, "tensor 'a' has a shape or offset that is not a natural number"),
        ({"a": entry(shape=[-2, -1])}, 8, "tensor 'a' has a shape or offset that is not a natural number"),
        ({"a": entry(shape=[True, 2])}, 8, "tensor 'a' has a shape or offset that is not a natural number"),
        ({"a": entry(shape=[2.0])}, 8, "tensor 'a' has a shape or offset that is not a natural number"),
        ({"a": entry(shape=["2"])}, 8, "tensor 'a' has a shape or offset that is not a natural number"),
        ({"a": entry(shape=[[2]])}, 8, "tensor 'a' has a shape or offset that is not a natural number"),
        ({"a": entry(offsets=[0, 8.0])}, 8, "tensor 'a' has a shape or offset that is not a natural number"),
        ({"a": entry(offsets=[-8, 0])}, 8, "tensor 'a' has a shape or offset that is not a natural number"),
        ({"a": entry(shape=[float("nan")])}, 8, "tensor 'a' has a shape or offset that is not a natural number"),
        ({"a": entry(shape=[3])}, 8, "tensor 'a' spans 8 bytes, its shape needs 12"),
        ({"a": entry(offsets=[8, 0])}, 8, "tensor 'a' spans -8 bytes, its shape needs 8"),
        ({"a": entry(shape=[2**62, 2])}, 8, "tensor 'a' is too large to exist"),
        ({"a": entry(shape=[0, 2**62, 2], offsets=[0, 0])}, 0, "tensor 'a' is too large to exist"),
        ({"a": entry(shape=[10**2000], offsets=[0, 4 * 10**2000])}, 8, "tensor 'a' is too large to exist"),
        ({"a": entry(shape=[1] * 65)}, 8, "tensor 'a' has 65 axes"),
        ({"a": entry(), "b": entry(offsets=[4, 12])}, 12, "tensor 'b' overlaps another one or leaves a hole"),
        ({"a": entry(), "b": entry()}, 8, "tensor 'b' overlaps another one or leaves a hole"),
        ({"a": entry(offsets=[8, 16])}, 16, "tensor 'a' overlaps another one or leaves a hole"),
        ({"a": entry(), "b": entry(offsets=[16, 24])}, 24, "tensor 'b' overlaps another one or leaves a hole"),
        ({"a": entry(), "e": entry(shape=[0], offsets=[4, 4])}, 8, "tensor 'e' overlaps another one or leaves a hole"),
        ('{"a\\u001b[2J": {}}', 0, "the tensor name 'a\\x1b[2J' is not plain text"),
        ('{"\\ud800": {}}', 0, "the tensor name '\\ud800' is not plain text"),
    ],
)  # fmt: skip
def test_a_header_that_lies_is_refused(header: Header | str, data: int, problem: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        parse(header, data)
    assert str(caught.value) == f"cannot read a safetensors file\n  model.safetensors: {problem}"


@pytest.mark.parametrize(
    "header", [b"\xff\xfe", '{"a": 1}'.encode("utf-16"), b"\xef\xbb\xbf{}", b"[" * 200_000, b"9" * 5000]
)
def test_a_header_that_is_no_json_text_is_refused(header: bytes) -> None:
    with pytest.raises(CheckpointError, match="model.safetensors: its header is not (valid JSON|a JSON object)"):
        parse(header, 0)


@pytest.mark.parametrize("missing", [-1, 1, 1000])
def test_the_size_of_the_file_must_be_what_the_header_describes(missing: int) -> None:
    raw = json.dumps({"a": entry()}).encode()
    described = 8 + len(raw) + 8
    with pytest.raises(CheckpointError) as caught:
        parse_header(raw, "model.safetensors", described - missing, shown="user/x@0123456/model.safetensors")
    what = f"it has {described - missing:,} bytes, but its header describes {described:,}"
    assert str(caught.value).splitlines() == [
        "cannot read a safetensors file",
        f"  user/x@0123456/model.safetensors: {what}",
        "    The file is truncated or damaged: fetch it again.",
    ]


def test_empty_tensors_stand_anywhere_between_others() -> None:
    header = {
        "b": entry(offsets=[8, 16]),
        "e2": entry(shape=[4, 0], offsets=[8, 8]),
        "a": entry(),
        "e1": entry(shape=[0], offsets=[0, 0]),
        "e3": entry(shape=[0], offsets=[16, 16]),
        "__metadata__": {"format": "pt"},
    }
    specs = parse(header, 16)
    assert list(specs) == ["e1", "a", "e2", "b", "e3"]
    assert [spec.nbytes for spec in specs.values()] == [0, 8, 0, 8, 0]


def test_a_header_without_tensors_is_a_model_file() -> None:
    assert parse("{}   ", 0) == {}
