"""Unit tests for models in local folders: opened from headers, read tensor by tensor."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import save_file

from dopkit import refs
from dopkit.checkpoints import Checkpoint, open_checkpoint
from dopkit.errors import CheckpointError

INDEX = "model.safetensors.index.json"


def open_folder(folder: Path) -> Checkpoint:
    return open_checkpoint(refs.parse(f"./{folder.name}", folder.parent))


def refusal(folder: Path) -> list[str]:
    with pytest.raises(CheckpointError) as caught:
        open_folder(folder)
    return str(caught.value).splitlines()


@pytest.fixture
def single(tmp_path: Path) -> Path:
    """A model of one safetensors file and a config."""
    folder = tmp_path / "single"
    folder.mkdir()
    save_file({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "x"}')
    return folder


# What an opened folder is


def test_a_sharded_model_is_read_as_the_library_reads_it(llama: Path) -> None:
    checkpoint = open_folder(llama / "base")
    expected = tiny.read(llama / "base")
    assert len({spec.file for spec in checkpoint.specs.values()}) > 1
    assert checkpoint.specs.keys() == expected.keys()
    for name, tensor in expected.items():
        spec = checkpoint.specs[name]
        assert (spec.dtype, spec.shape) == ("BF16", tuple(tensor.shape))
        assert torch.equal(checkpoint.read(name), tensor), name
        assert torch.equal(checkpoint.read(name, (1, 3)), tensor[1:3]), name
    assert checkpoint.config is not None
    assert checkpoint.config["model_type"] == "llama"
    assert checkpoint.side_files == [
        "chat_template.jinja", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert checkpoint.download_bytes == 0
    checkpoint.fetch()
    checkpoint.close()


def test_a_pickled_model_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    torch.save({"a": torch.arange(4.0).reshape(2, 2)}, folder / "pytorch_model-1.bin")
    torch.save({"b": torch.ones(3)}, folder / "pytorch_model-2.bin")
    weight_map = {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    checkpoint = open_folder(folder)
    assert [(spec.name, spec.file, spec.offset) for spec in checkpoint.specs.values()] == [
        ("a", "pytorch_model-1.bin", -1),
        ("b", "pytorch_model-2.bin", -1),
    ]
    assert checkpoint.read("a", (1, 2)).tolist() == [[2.0, 3.0]]
    assert checkpoint.read("b").tolist() == [1.0, 1.0, 1.0]
    assert checkpoint.config is None
    checkpoint.close()
    torch.save({"a": torch.ones(1), "b": torch.ones(3)}, folder / "pytorch_model-2.bin")
    assert refusal(folder) == ["./old: a is in both pytorch_model-1.bin and pytorch_model-2.bin"]


def test_side_files_are_found_by_name(single: Path) -> None:
    (single / "tokenizer.json").write_text("{}")
    (single / "1_Pooling").mkdir()
    (single / "1_Pooling" / "config.json").write_text("{}")
    checkpoint = open_folder(single)
    assert checkpoint.side_files == ["1_Pooling/config.json", "tokenizer.json"]
    assert checkpoint.side_file("1_Pooling/config.json") == single / "1_Pooling" / "config.json"
    with pytest.raises(FileNotFoundError):
        checkpoint.side_file("README.md")
    checkpoint.close()


# Identity and state


def test_identity_is_that_of_the_weights_wherever_they_lie(single: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(single, tmp_path / "copy"))
    (copy / "README.md").write_text("another card")
    one, two = open_folder(single), open_folder(copy)
    assert one.identity == two.identity
    assert re.fullmatch("sampled:[0-9a-f]{64}", one.identity)


@pytest.mark.parametrize("change", ["value", "name", "dtype"])
def test_identity_changes_with_the_weights(single: Path, change: str) -> None:
    before = open_folder(single).identity
    matrix = torch.arange(6.0).reshape(2, 3)
    if change == "value":
        matrix[1, 2] += 1
    name = "c" if change == "name" else "b"
    ones = torch.ones(3, dtype=torch.int32 if change == "dtype" else torch.float32)
    save_file({"a": matrix, name: ones}, single / "model.safetensors")
    assert open_folder(single).identity != before


def test_state_changes_when_a_weight_file_is_written_to(single: Path) -> None:
    before = open_folder(single)
    os.utime(single / "config.json", ns=(1, 1))
    assert open_folder(single).state == before.state
    os.utime(single / "model.safetensors", ns=(1, 1))
    assert open_folder(single).state != before.state
    assert open_folder(single).identity == before.identity


# What is refused, on opening


def test_a_folder_that_is_none(tmp_path: Path, single: Path) -> None:
    assert refusal(tmp_path / "none") == ["./none: there is no such folder", f"  looked for {tmp_path / 'none'}"]
    (tmp_path / "file").write_text("")
    assert refusal(tmp_path / "file") == ["./file: it is a file", f"  looked for {tmp_path / 'file'}"]


@pytest.mark.parametrize("file", ["model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"])
def test_a_truncated_shard_is_refused_on_opening(llama: Path, tmp_path: Path, file: str) -> None:
    folder = Path(shutil.copytree(llama / "base", tmp_path / "cut"))
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    path = folder / (shards[0] if "00001" in file else shards[-1])
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    assert refusal(folder) == [
        "cannot read a safetensors file",
        f"  {path}: it has {size - 1:,} bytes, but its header describes {size:,}",
        "    The file is truncated or damaged: fetch it again.",
    ]


def test_a_missing_shard_is_refused_on_opening(llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llama / "base", tmp_path / "cut"))
    path = min(folder.glob("*.safetensors"))
    path.unlink()
    assert refusal(folder) == [
        f"./cut: {INDEX} names {path.name}, which is not there",
        "  The download may be incomplete: fetch the model again.",
    ]


def test_an_index_never_leads_outside(single: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.safetensors"
    (single / "model.safetensors").rename(outside)
    for file in ("../outside.safetensors", str(outside)):
        (single / INDEX).write_text(json.dumps({"weight_map": {"a": file}}))
        assert refusal(single) == [f"./single: {INDEX} names a file outside the model: {file!r}"]
    (single / INDEX).write_bytes(b"\xff\xfe")
    assert refusal(single) == [f"./single: {INDEX} is not UTF-8 text"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "{",
            "config.json is not valid JSON (Expecting property name enclosed in double quotes: line 1 column 2",
        ),
        ("[]", "config.json is not a JSON object"),
        ("[" * 100_000, "config.json is not valid JSON (maximum recursion depth exceeded"),
    ],
)
def test_a_config_that_is_no_object_is_refused(single: Path, text: str, problem: str) -> None:
    (single / "config.json").write_text(text)
    (line,) = refusal(single)
    assert line.startswith(f"./single: {problem}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(single: Path) -> None:
    (single / "model.safetensors").chmod(0)
    assert refusal(single) == [f"cannot read {single / 'model.safetensors'}: Permission denied"]
