"""Unit tests for models on the Hub, against a real server on loopback whose log tells what was asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
import torch
from hubserver import TestHub, connect
from safetensors.torch import load, save

from dopkit import hub, refs
from dopkit.checkpoints import Checkpoint, open_checkpoint
from dopkit.checkpoints.repository import _FIRST_READ
from dopkit.errors import CheckpointError, HubError
from dopkit.units import show_size

LARGE = {"a": torch.arange(60_000.0).reshape(100, 600), "b": torch.ones(7, dtype=torch.bfloat16)}  # 240 kB


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[TestHub]:
    with TestHub() as server:
        connect(monkeypatch, server, tmp_path / "cache")
        yield server
        assert server.crashes == []


def open_repo(text: str) -> Checkpoint:
    return open_checkpoint(hub.pin(refs.parse(text, Path())))


def refusal(text: str) -> list[str]:
    with pytest.raises(CheckpointError) as caught:
        open_repo(text)
    return str(caught.value).splitlines()


def weight_bytes(server: TestHub) -> int:
    """What the server has sent of weight files."""
    return sum(entry.sent for entry in server.log if entry.host == "storage")


def test_opening_reads_the_header_and_no_weight_beyond_it(server: TestHub) -> None:
    file = save(LARGE)
    commit = server.create_repo(
        "user/model", {"model.safetensors": file, "config.json": b'{"x": 1}', "README.md": b"# hi"}
    )
    checkpoint = open_repo("user/model")
    assert checkpoint.identity == checkpoint.state == commit
    assert checkpoint.config == {"x": 1}
    assert {name: (spec.dtype, spec.shape) for name, spec in checkpoint.specs.items()} == {
        "a": ("F32", (100, 600)),
        "b": ("BF16", (7,)),
    }
    (request,) = [entry for entry in server.log if entry.host == "storage"]
    assert request.range == f"bytes=0-{_FIRST_READ - 1}"
    assert weight_bytes(server) == _FIRST_READ
    assert checkpoint.download_bytes == len(file)


def test_a_long_header_takes_a_second_request_and_no_more(server: TestHub) -> None:
    file = save({f"tensor.number.{index:05d}": torch.zeros(1) for index in range(2000)})
    header = 8 + int.from_bytes(file[:8], "little")
    assert header > _FIRST_READ
    server.create_repo("user/model", {"model.safetensors": file})
    assert len(open_repo("user/model").specs) == 2000
    ranges = [entry.range for entry in server.log if entry.host == "storage"]
    assert ranges == [f"bytes=0-{_FIRST_READ - 1}", f"bytes={_FIRST_READ}-{header - 1}"]
    assert weight_bytes(server) == header


def test_fetching_downloads_once_and_reads_what_the_library_reads(server: TestHub) -> None:
    file = save(LARGE)
    server.create_repo("user/model", {"model.safetensors": file})
    checkpoint = open_repo("user/model")
    checkpoint.fetch()
    assert checkpoint.download_bytes == 0
    expected = load(file)
    for name, tensor in expected.items():
        assert torch.equal(checkpoint.read(name), tensor)
        assert torch.equal(checkpoint.read(name, (2, 5)), tensor[2:5])
    checkpoint.close()

    server.clear_log()
    again = open_repo("user/model@main")  # headers out of the cache
    assert again.download_bytes == 0
    again.fetch()
    assert torch.equal(again.read("a"), expected["a"])
    assert weight_bytes(server) == 0
    again.close()


def test_reading_fetches_by_itself(server: TestHub) -> None:
    server.create_repo("user/model", {"model.safetensors": save(LARGE)})
    checkpoint = open_repo("user/model")
    assert torch.equal(checkpoint.read("b"), LARGE["b"])
    assert checkpoint.download_bytes == 0
    checkpoint.close()


def test_a_sharded_model(server: TestHub, llama: Path) -> None:
    server.add_folder("user/base", llama / "base")
    expected = tiny.read(llama / "base")
    checkpoint = open_repo("user/base")
    assert checkpoint.specs.keys() == expected.keys()
    shards = {spec.file for spec in checkpoint.specs.values()}
    assert len(shards) > 1
    sizes = sum((llama / "base" / file).stat().st_size for file in shards)
    assert checkpoint.download_bytes == sizes
    assert checkpoint.side_files == [
        "chat_template.jinja", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert checkpoint.side_file("chat_template.jinja").read_text() == "{{ messages }}"
    with pytest.raises(FileNotFoundError):
        checkpoint.side_file("LICENSE")
    hub.fetch(checkpoint.ref, min(shards))
    assert checkpoint.download_bytes == sizes - (llama / "base" / min(shards)).stat().st_size
    checkpoint.fetch()
    assert all(torch.equal(checkpoint.read(name), tensor) for name, tensor in expected.items())
    checkpoint.close()


def test_a_commit_keeps_its_weights_when_the_branch_moves_on(server: TestHub) -> None:
    server.create_repo("user/model", {"model.safetensors": save({"a": torch.zeros(3)})})
    checkpoint = open_repo("user/model")
    server.upload("user/model", {"model.safetensors": save({"a": torch.ones(5)})})
    assert checkpoint.read("a").tolist() == [0.0, 0.0, 0.0]
    moved = open_repo("user/model")
    assert moved.read("a").tolist() == [1.0] * 5
    assert moved.identity != checkpoint.identity
    checkpoint.close()
    moved.close()


# Damage and refusals


def test_a_truncated_file_is_refused_on_opening(server: TestHub) -> None:
    file = save(LARGE)
    commit = server.create_repo("user/model", {"model.safetensors": file[:-5]})
    server.create_repo("user/empty", {"model.safetensors": b""})
    assert refusal("user/model") == [
        "cannot read a safetensors file",
        f"  user/model@{commit[:7]}/model.safetensors: it has {len(file) - 5:,} bytes, "
        f"but its header describes {len(file):,}",
        "    The file is truncated or damaged: fetch it again.",
    ]
    assert refusal("user/empty")[1].endswith("/model.safetensors: it has only 0 bytes")


def test_a_damaged_file_in_the_cache_is_noticed_before_it_is_read(server: TestHub) -> None:
    server.create_repo("user/model", {"model.safetensors": save(LARGE)})
    checkpoint = open_repo("user/model")
    path = hub.fetch(checkpoint.ref, "model.safetensors").resolve()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError) as caught:
        checkpoint.fetch()
    assert str(caught.value).splitlines() == [
        f"{checkpoint.ref.short}: model.safetensors in the cache has the wrong size",
        "  Remove it from the cache (`hf cache rm model/user/model`) and run again.",
    ]
    assert refusal("user/model")[0] == "cannot read a safetensors file"  # from the cache, the same at once


def test_an_index_that_leads_astray_is_refused(server: TestHub) -> None:
    index = json.dumps({"weight_map": {"a": "../../secret.safetensors"}}).encode()
    commit = server.create_repo("user/model", {"model.safetensors.index.json": index})
    what = "model.safetensors.index.json names a file outside the model: '../../secret.safetensors'"
    assert refusal("user/model") == [f"user/model@{commit[:7]}: {what}"]
    server.create_repo("user/none", {"README.md": b"nothing"})
    assert refusal("user/none")[0].endswith(" holds no model weights")


def test_a_pickle_can_be_checked_only_when_it_is_there(server: TestHub, tmp_path: Path) -> None:
    torch.save({"a": torch.arange(4.0)}, tmp_path / "x.bin")
    commit = server.create_repo("user/model", {"pytorch_model.bin": (tmp_path / "x.bin").read_bytes()})
    what = "of .bin files have no headers and must be downloaded before it can be planned"
    size = show_size((tmp_path / "x.bin").stat().st_size)
    assert refusal("user/model") == [
        f"user/model@{commit[:7]} has no safetensors",
        f"  its {size} {what}",
        f"    `dopkit run` downloads them, and so does `hf download user/model --revision {commit}`.",
    ]
    assert weight_bytes(server) == 0
    hub.fetch(hub.pin(refs.parse("user/model", Path())), "pytorch_model.bin")
    checkpoint = open_repo("user/model")
    assert checkpoint.download_bytes == 0
    assert checkpoint.read("a", (1, 3)).tolist() == [1.0, 2.0]
    checkpoint.close()


def test_a_gated_model_is_refused_before_its_weights(server: TestHub) -> None:
    commit = server.create_repo("user/gated", {"model.safetensors": save(LARGE)}, gated=True)
    with pytest.raises(HubError) as caught:
        open_repo("user/gated")
    assert str(caught.value).splitlines() == [
        f"user/gated@{commit[:7]} is gated",
        "  Accept its terms on its page on the Hub, then `hf auth login`.",
    ]
    assert weight_bytes(server) == 0


# Offline


def test_offline_a_cached_model_opens_and_reads(server: TestHub, monkeypatch: pytest.MonkeyPatch) -> None:
    server.create_repo("user/model", {"model.safetensors": save(LARGE), "config.json": b"{}", "tokenizer.json": b"{}"})
    online = open_repo("user/model")
    online.fetch()
    online.close()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    server.clear_log()
    checkpoint = open_repo("user/model")
    assert checkpoint.identity == online.identity
    assert checkpoint.config == {}
    assert torch.equal(checkpoint.read("a"), LARGE["a"])
    assert checkpoint.side_files == []  # the tokenizer was never fetched
    assert server.log == []
    checkpoint.close()
