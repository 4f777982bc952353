"""The last look: a folder that is not what was planned, or does not load, never appears."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import save_file

import dopkit
from dopkit import verification
from dopkit.errors import VerificationError
from dopkit.writer import ShardWriter

MakeRecipe = Callable[..., dopkit.Recipe]


@pytest.mark.parametrize("damage", ["lost", "extra", "reshaped", "truncated"])
def test_a_damaged_folder_is_not_published(
    vit: Path, tmp_path: Path, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    finish = ShardWriter.finish

    def damaging(self: ShardWriter) -> object:
        shards = finish(self)
        path = tmp_path / "out.partial" / "model.safetensors"
        tensors = tiny.read(path.parent)
        if damage == "lost":
            del tensors["layernorm.weight"]
        elif damage == "extra":
            tensors["surplus"] = torch.ones(1)
        elif damage == "reshaped":
            tensors["layernorm.weight"] = tensors["layernorm.weight"].reshape(4, 4)
        save_file(tensors, path)
        if damage == "truncated":
            path.write_bytes(path.read_bytes()[:-4])
        return shards

    monkeypatch.setattr(ShardWriter, "finish", damaging)
    with pytest.raises(VerificationError) as caught:
        dopkit.run(make_recipe(vit, ["e0", "e1"]), tmp_path / "out")
    named = {"lost": "layernorm.weight", "extra": "surplus", "reshaped": "layernorm.weight", "truncated": "truncated"}
    assert named[damage] in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_shard_is_checked_by_itself(llama: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    """Before it leaves the disk, when no whole folder is there to look at."""
    out = tmp_path / "out"
    plan = dopkit.run(make_recipe(llama, ["e0", "e1"]), out, dopkit.Options(max_shard_size=5000)).plan
    first, second = (out / shard.file for shard in plan.shards[:2])
    verification.verify_shard(first, plan)
    second.rename(first)
    with pytest.raises(VerificationError, match="is not what was planned"):
        verification.verify_shard(first, plan)
    first.write_bytes(b"nonsense")
    with pytest.raises(VerificationError, match=f"{first.name} cannot be read back"):
        verification.verify_shard(first, plan)
