"""Unit tests for dopkit.checkpoints.reading: bytes out of files, with safetensors and torch as the reference."""

from __future__ import annotations

import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dopkit.checkpoints import reading
from dopkit.checkpoints.reading import PickledFiles, SafetensorsFiles, bytes_of, read_header, torch_dtype
from dopkit.errors import CheckpointError
from dopkit.specs import DTYPES

RESAVE = "    Save the model again as safetensors, from a source that you trust."
FILE = "model.safetensors"


def sample(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """Arbitrary bits: any dtype, NaN included."""
    generator = torch.Generator().manual_seed(0)
    if dtype is torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    numbers = torch.randint(0, 256, (*shape, dtype.itemsize), generator=generator, dtype=torch.uint8)
    return numbers.view(dtype).reshape(shape)


def same_bits(one: torch.Tensor, two: torch.Tensor) -> bool:
    if (one.dtype, one.shape) != (two.dtype, two.shape):
        return False
    return not one.numel() or bytes_of(one.contiguous()) == bytes_of(two.contiguous())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """One file that holds every dtype in four shapes."""
    shapes = {"matrix": (3, 5), "vector": (7,), "scalar": (), "empty": (0, 4), "thick": (4, 2, 3)}
    tensors = {f"{name}.{what}": sample(torch_dtype(name), shape) for name in DTYPES for what, shape in shapes.items()}
    save_file(tensors, tmp_path / FILE, metadata={"format": "pt"})
    return tmp_path / FILE


# Safetensors


def test_every_dtype_and_shape_is_read_as_the_library_reads_it(path: Path) -> None:
    raw, specs = read_header(path, FILE)
    assert path.read_bytes()[8 : 8 + len(raw)] == raw
    weights = SafetensorsFiles({FILE: path})
    expected = load_file(path)
    assert specs.keys() == expected.keys()
    for name, spec in specs.items():
        assert spec.file == FILE
        assert same_bits(weights.read(spec, None), expected[name]), name
    weights.close()


@pytest.mark.parametrize("rows", [(0, 4), (0, 1), (1, 3), (3, 4), (2, 2), (4, 4)])
def test_rows_are_read_alone(path: Path, rows: tuple[int, int]) -> None:
    _, specs = read_header(path, FILE)
    weights, expected = SafetensorsFiles({FILE: path}), load_file(path)
    for name in (f"{dtype}.thick" for dtype in DTYPES):
        assert same_bits(weights.read(specs[name], rows), expected[name][rows[0] : rows[1]]), name
    weights.close()


def test_a_scalar_and_an_empty_tensor_have_rows_too(path: Path) -> None:
    _, specs = read_header(path, FILE)
    weights, expected = SafetensorsFiles({FILE: path}), load_file(path)
    assert same_bits(weights.read(specs["F32.scalar"], (0, 1)), expected["F32.scalar"])
    assert weights.read(specs["F32.empty"], (0, 0)).shape == (0, 4)
    weights.close()


@pytest.mark.parametrize("rows", [(0, 4), (-1, 2), (2, 1), (3, 4)])
def test_rows_beyond_the_tensor_are_never_another_tensors_bytes(path: Path, rows: tuple[int, int]) -> None:
    _, specs = read_header(path, FILE)
    with pytest.raises(IndexError, match=f"^F32.matrix has 3 rows; {rows[0]} to {rows[1]} was asked for$"):
        SafetensorsFiles({FILE: path}).read(specs["F32.matrix"], rows)


def test_large_reads_are_made_in_pieces(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_LARGEST_READ", 7)
    _, specs = read_header(path, FILE)
    weights = SafetensorsFiles({FILE: path})
    assert same_bits(weights.read(specs["F64.thick"], None), load_file(path)["F64.thick"])
    weights.close()


def test_threads_may_read_at_once(path: Path) -> None:
    _, specs = read_header(path, FILE)
    weights, expected = SafetensorsFiles({FILE: path}), load_file(path)
    names = [f"{dtype}.thick" for dtype in DTYPES] * 20
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda name: weights.read(specs[name], None), names))
    assert all(same_bits(one, expected[name]) for one, name in zip(found, names, strict=True))
    weights.close()


def test_what_is_read_is_the_readers_own(path: Path) -> None:
    _, specs = read_header(path, FILE)
    weights = SafetensorsFiles({FILE: path})
    weights.read(specs["U8.vector"], None).fill_(0)
    assert same_bits(weights.read(specs["U8.vector"], None), load_file(path)["U8.vector"])
    weights.close()


def test_closing_lets_go_of_the_file(path: Path) -> None:
    _, specs = read_header(path, FILE)
    weights = SafetensorsFiles({FILE: path})
    weights.read(specs["U8.vector"], None)
    (handle,) = (handle.number for handle in weights._handles.values())
    weights.close()
    with pytest.raises(OSError):
        os.fstat(handle)
    weights.close()  # twice does no harm
    assert weights.read(specs["U8.vector"], None).shape == (7,)
    weights.close()


@pytest.mark.parametrize("keep", [0, 5, 8, 100, -1])
def test_a_truncated_file_is_refused_on_opening(path: Path, keep: int) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:keep])
    with pytest.raises(CheckpointError) as caught:
        read_header(path, FILE)
    lines = str(caught.value).splitlines()
    assert lines[0] == "cannot read a safetensors file"
    assert lines[1].startswith(f"  {path}: it")
    assert lines[2:] == ["    The file is truncated or damaged: fetch it again."]


def test_a_file_that_shrinks_under_the_reader_is_noticed(path: Path) -> None:
    _, specs = read_header(path, FILE)
    last = max(specs.values(), key=lambda spec: spec.offset)
    path.write_bytes(path.read_bytes()[:-1])
    weights = SafetensorsFiles({FILE: path})
    with pytest.raises(CheckpointError) as caught:
        weights.read(last, None)
    assert str(caught.value).splitlines() == [
        f"{path} ends in the middle of {last.name}",
        "  The file is truncated or damaged: fetch it again.",
    ]
    weights.close()


def test_a_file_that_is_gone_is_named(path: Path) -> None:
    _, specs = read_header(path, FILE)
    path.unlink()
    for read in (
        lambda: read_header(path, FILE),
        lambda: SafetensorsFiles({FILE: path}).read(specs["I8.vector"], None),
    ):
        with pytest.raises(CheckpointError) as caught:
            read()
        assert str(caught.value) == f"cannot read {path}: No such file or directory"


# Pickles


def pickled(folder: Path, state: Any, **how: Any) -> Path:
    torch.save(state, folder / "pytorch_model.bin", **how)
    return folder / "pytorch_model.bin"


def open_pickle(path: Path) -> PickledFiles:
    return PickledFiles({"pytorch_model.bin": path})


def refusal(path: Path) -> list[str]:
    with pytest.raises(CheckpointError) as caught:
        open_pickle(path).header("pytorch_model.bin")
    lines = str(caught.value).splitlines()
    assert lines[0] == "cannot read a pickled checkpoint"
    assert lines[1].startswith(f"  {path}: ")
    return [lines[1].removeprefix(f"  {path}: "), *lines[2:]]


@pytest.mark.filterwarnings("error")
def test_tensors_of_a_pickle_are_read_whatever_their_storage(tmp_path: Path) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    state = {
        "whole": whole,
        "rows": whole[1:3],  # shares the storage
        "transposed": whole.T,  # shares it, and is not contiguous
        "every.second": whole[:, ::2],
        "expanded": torch.ones(1).expand(3, 2),
        "parameter": torch.nn.Parameter(torch.ones(2, 2)),
        "scalar": torch.tensor(5),
        "empty": torch.zeros(0, 3, dtype=torch.bfloat16),
    }
    pickles = open_pickle(pickled(tmp_path, state))
    specs = pickles.header("pytorch_model.bin")
    assert {name: (spec.dtype, spec.shape, spec.offset) for name, spec in specs.items()} == {
        "whole": ("F32", (4, 6), -1),
        "rows": ("F32", (2, 6), -1),
        "transposed": ("F32", (6, 4), -1),
        "every.second": ("F32", (4, 3), -1),
        "expanded": ("F32", (3, 2), -1),
        "parameter": ("F32", (2, 2), -1),
        "scalar": ("I64", (), -1),
        "empty": ("BF16", (0, 3), -1),
    }
    for name, tensor in state.items():
        found = pickles.read(specs[name], None)
        assert torch.equal(found, tensor.detach()), name
        assert found.is_contiguous(), name
        assert not found.requires_grad, name
    assert pickles.read(specs["transposed"], (1, 3)).tolist() == [[1, 7, 13, 19], [2, 8, 14, 20]]
    with pytest.raises(IndexError):
        pickles.read(specs["transposed"], (1, 7))
    pickles.read(specs["rows"], None).fill_(9)
    assert torch.equal(pickles.read(specs["whole"], None), whole)  # what is read is the reader's own
    pickles.close()


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_of_a_pickle(tmp_path: Path, name: str) -> None:
    tensor = sample(torch_dtype(name), (3, 2))
    pickles = open_pickle(pickled(tmp_path, {"x": tensor}))
    spec = pickles.header("pytorch_model.bin")["x"]
    assert spec.dtype == name
    assert same_bits(pickles.read(spec, None), tensor)
    pickles.close()


class Evil:
    """Runs a command when it is unpickled by anything that trusts it."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_does_not_run(tmp_path: Path, zipped: bool) -> None:
    made = tmp_path / "made-by-the-pickle"
    path = pickled(tmp_path, {"x": Evil(made)}, _use_new_zipfile_serialization=zipped)
    problem = refusal(path)
    assert problem[0].startswith("it holds more than tensors (" if zipped else "it is in PyTorch's old format")
    assert problem[1:] == [RESAVE]
    assert not made.exists()


def test_a_bare_pickle_is_not_loaded(tmp_path: Path) -> None:
    made = tmp_path / "made-by-the-pickle"
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(pickle.dumps(Evil(made)))
    assert refusal(path)[0] == "it is in PyTorch's old format (before 1.6), which cannot be read in parts"
    assert not made.exists()


def test_the_old_format_is_refused_by_name(tmp_path: Path) -> None:
    path = pickled(tmp_path, {"x": torch.ones(2)}, _use_new_zipfile_serialization=False)
    assert refusal(path) == ["it is in PyTorch's old format (before 1.6), which cannot be read in parts", RESAVE]


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        ({"state_dict": {"x": torch.ones(2)}, "epoch": 3},
         ["'state_dict' holds dict, no tensor: this is more than a model", "    Save that alone, as safetensors."]),
        ({"x": torch.ones(2), "epoch": 3}, ["'epoch' holds int, no tensor: this is more than a model"]),
        ([torch.ones(2)], ["it holds a list, not a mapping of names to tensors", RESAVE]),
        (torch.ones(2), ["it holds a Tensor, not a mapping of names to tensors", RESAVE]),
        ({1: torch.ones(2)}, ["1 is not the name of a tensor"]),
        ({"__metadata__": torch.ones(2)}, ["'__metadata__' is not the name of a tensor"]),
        ({"a\n": torch.ones(2)}, ["'a\\n' is not the name of a tensor"]),
        ({"x": torch.eye(2).to_sparse()}, ["x is not a plain tensor (torch.sparse_coo, on cpu)"]),
        ({"x": torch.empty(2, device="meta")}, ["x is not a plain tensor (torch.strided, on meta)"]),
        ({"x": torch.ones(2, dtype=torch.complex128)}, ["x has dtype torch.complex128, which dopkit does not know"]),
    ],
)  # fmt: skip
def test_a_pickle_that_is_no_plain_model_is_refused(tmp_path: Path, state: Any, problem: list[str]) -> None:
    assert refusal(pickled(tmp_path, state)) == problem


def test_a_file_that_is_no_pickle_is_refused(tmp_path: Path) -> None:
    path = pickled(tmp_path, {"x": torch.ones(100)})
    data = path.read_bytes()
    again = "    The file is truncated or damaged: fetch it again."
    path.write_bytes(data[: len(data) // 2])
    assert refusal(path) == [f"it has {len(data) // 2:,} bytes and lacks its end", again]
    path.write_bytes(b"")
    assert refusal(path) == ["it has 0 bytes and lacks its end", again]
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert refusal(path) == ["it is a Git LFS pointer, not the file itself", "    Run `git lfs pull` in that folder."]
    path.write_bytes(b"<html>no such file</html>")
    assert refusal(path) == ["it is not a file that torch.save wrote"]
    path.unlink()
    with pytest.raises(CheckpointError) as caught:
        open_pickle(path).header("pytorch_model.bin")
    assert str(caught.value) == f"cannot read {path}: No such file or directory"


# Bytes


@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
def test_bytes_of_a_tensor_are_its_own(shape: tuple[int, ...]) -> None:
    tensor = torch.zeros(shape, dtype=torch.bfloat16)
    view = bytes_of(tensor)
    assert len(view) == tensor.numel() * 2
    view[:2] = b"\x80\x3f"  # 1.0
    assert tensor.reshape(-1)[0] == 1.0


def test_few_files_are_open_and_none_is_closed_under_a_reader(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model may have more files than a process may have open; another thread may close it at any time."""
    _, specs = read_header(path, FILE)
    spec, expected = specs["U8.vector"], load_file(path)["U8.vector"]
    names = [f"{number}.safetensors" for number in range(20)]
    weights = SafetensorsFiles(dict.fromkeys(names, path))
    before = len(os.listdir("/dev/fd"))
    assert all(same_bits(weights.read(replace(spec, file=name), None), expected) for name in names)
    assert len(os.listdir("/dev/fd")) - before <= 4
    read_some = os.preadv

    def closing(handle: int, *rest: Any) -> int:
        weights.close()
        return read_some(handle, *rest)

    monkeypatch.setattr(os, "preadv", closing)
    assert same_bits(weights.read(replace(spec, file=names[0]), None), expected)
    assert len(os.listdir("/dev/fd")) == before
