"""Unit tests for dopkit.checkpoints.files and .headers: names and indexes, with nothing on disk."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from dopkit.checkpoints import files
from dopkit.checkpoints.headers import read_specs
from dopkit.errors import CheckpointError
from dopkit.specs import TensorSpec

INDEX = "model.safetensors.index.json"


# Which files hold the weights


@pytest.mark.parametrize(
    ("names", "kind", "index", "found"),
    [
        (["model.safetensors", INDEX, "pytorch_model.bin"], "safetensors", None, ("model.safetensors",)),
        ([INDEX, "model-00001-of-00002.safetensors", "pytorch_model.bin"], "safetensors", INDEX, ()),
        (["pytorch_model.bin", "pytorch_model.bin.index.json"], "pickle", None, ("pytorch_model.bin",)),
        (["pytorch_model.bin.index.json"], "pickle", "pytorch_model.bin.index.json", ()),
    ],
)
def test_weights_are_found_in_the_order_of_transformers(
    names: list[str], kind: str, index: str | None, found: tuple[str, ...]
) -> None:
    assert files.find_weights(names, "m") == files.WeightFiles(kind, index, found)


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (
            ["adapter_config.json", "adapter_model.safetensors"],
            [
                "  it is an adapter (adapter_config.json), not a whole model",
                "    Name its base before it: user/base+user/adapter.",
            ],
        ),
        (
            ["model-Q4_K_M.gguf"],
            [
                "  it holds GGUF files, which are quantised for inference",
                "    Merge the original weights that they were made from.",
            ],
        ),
        (["model_index.json"], ["  it is a diffusers pipeline; dopkit merges transformers models"]),
        (
            ["sub/model.safetensors"],
            [
                "  none of model.safetensors, model.safetensors.index.json, pytorch_model.bin, "
                "pytorch_model.bin.index.json is there"
            ],
        ),
    ],
)
def test_what_holds_no_weights_is_told_by_what_it_is(names: list[str], problem: list[str]) -> None:
    with pytest.raises(CheckpointError) as caught:
        files.find_weights(names, "user/x")
    assert str(caught.value).splitlines() == ["user/x holds no model weights", *problem]


# The index


def index(weight_map: object) -> str:
    return json.dumps({"metadata": {}, "weight_map": weight_map})


def test_an_index_is_read() -> None:
    text = index({"b": "two.safetensors", "a": "one.safetensors"})
    found = files.read_index(text, INDEX, {"one.safetensors": 1, "two.safetensors": 2}, "m")
    assert found == {"b": "two.safetensors", "a": "one.safetensors"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{}",
        "[" * 100_000,
        index(None),
        index({}),
        index(["a"]),
        index({"a": None}),
        index({"a": ["x"]}),
    ],
)
def test_what_is_no_index_is_refused(text: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        files.read_index(text, INDEX, ["None"], "m")
    assert str(caught.value) == f"m: {INDEX} is not an index of weight files"


@pytest.mark.parametrize("file", ["../x.safetensors", "/etc/passwd", "a/b", "..", ".", "", "a\\..\\b", "x\0"])
def test_an_index_cannot_lead_outside_the_model(file: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        files.read_index(index({"a": file}), INDEX, [file], "m")  # even if such a file is there
    assert str(caught.value) == f"m: {INDEX} names a file outside the model: {file!r}"


def test_an_index_that_names_a_lacking_file_is_an_incomplete_download() -> None:
    with pytest.raises(CheckpointError) as caught:
        files.read_index(index({"a": "1.safetensors", "b": "2.safetensors"}), INDEX, ["2.safetensors"], "m")
    assert str(caught.value).splitlines() == [
        f"m: {INDEX} names 1.safetensors, which is not there",
        "  The download may be incomplete: fetch the model again.",
    ]


# Index and headers together


def spec(name: str, file: str) -> TensorSpec:
    return TensorSpec(name, "F32", (2,), file, 0)


def read(weight_map: dict[str, str] | None, headers: Mapping[str, list[str]]) -> dict[str, TensorSpec]:
    """The specs of a model whose files hold these tensor names."""
    names = [*headers, *([INDEX] if weight_map is not None else [])]

    def header(kind: str, file: str) -> dict[str, TensorSpec]:
        assert kind == files.SAFETENSORS
        return {name: spec(name, file) for name in headers[file]}

    return read_specs(names, "m", lambda _: index(weight_map), header)


def test_tensors_come_shard_by_shard() -> None:
    weight_map = {"z": "1.safetensors", "a": "2.safetensors"}
    specs = read(weight_map, {"2.safetensors": ["a"], "1.safetensors": ["z", "y"], "3.safetensors": ["other"]})
    assert list(specs.items()) == [
        ("z", spec("z", "1.safetensors")),
        ("y", spec("y", "1.safetensors")),  # in a shard, though the index does not name it: transformers loads it too
        ("a", spec("a", "2.safetensors")),
    ]
    assert read(None, {"model.safetensors": ["a"]}) == {"a": spec("a", "model.safetensors")}


def test_a_name_in_two_files_is_refused() -> None:
    with pytest.raises(CheckpointError) as caught:
        read({"a": "1.bin", "b": "2.bin"}, {"1.bin": ["a", "b", "c"], "2.bin": ["c", "b"]})
    assert str(caught.value) == "m: b is in both 1.bin and 2.bin"


def test_a_name_in_no_file_is_refused() -> None:
    with pytest.raises(CheckpointError) as caught:
        read({"b": "1.bin", "a": "1.bin", "c": "1.bin"}, {"1.bin": ["c"]})
    assert str(caught.value) == f"m: {INDEX} names a, which is in none of the files"


def test_headers_are_read_side_by_side_and_the_first_error_is_told() -> None:
    together = threading.Barrier(3, timeout=10)

    def header(kind: str, file: str) -> dict[str, TensorSpec]:
        together.wait()  # passes only when three wait at once
        raise CheckpointError(f"bad {file}")

    weight_map = {"a": "3.bin", "b": "1.bin", "c": "2.bin"}
    with pytest.raises(CheckpointError, match="^bad 1.bin$"):
        read_specs([*weight_map.values(), INDEX], "m", lambda _: index(weight_map), header)


# Side files


def test_what_travels_with_a_merged_model() -> None:
    travels = [
        "LICENSE", "LICENSE.txt", "NOTICE", "added_tokens.json", "additional_chat_templates/tool.jinja",
        "chat_template.jinja", "generation_config.json", "merges.txt", "modeling_x.py", "modules.json",
        "1_Pooling/config.json", "2_Dense/model.safetensors", "3_Dense/pytorch_model.bin",
        "preprocessor_config.json", "special_tokens_map.json", "spiece.model",
        "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "video_preprocessor_config.json", "vocab.json",
    ]  # fmt: skip
    stays = [
        "README.md", "config.json", "model.safetensors", INDEX, "pytorch_model.bin", "training_args.bin",
        "tokenizer.bin", "onnx/model.onnx", "sub/tokenizer.json", "a/b/LICENSE", "../tokenizer.json", "/tokenizer.json",
        "../evil.py", "additional_chat_templates/../x.jinja", "tokenizer\\..\\x", "optimizer.pt", "tokenizer/../x",
        "onnx/model.safetensors", "2_Dense/optimizer.bin", "2_Dense/sub/model.safetensors",
        "checkpoint-2/model.safetensors",
    ]  # fmt: skip
    assert files.side_files([*stays, *travels]) == sorted(travels)
    assert files.module_weights([*stays, *travels]) == ["2_Dense", "3_Dense"]


def test_a_text_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xff")
    for name, what in {
        "a.json": "m: a.json is not UTF-8 text",
        "b.json": "m: cannot read b.json: No such file or directory",
    }.items():
        with pytest.raises(CheckpointError) as caught:
            files.read_text(tmp_path / name, "m")
        assert str(caught.value) == what
