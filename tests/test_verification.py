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


def test_a_folder_that_does_not_load_is_not_published(
    vit: Path, tmp_path: Path, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class that wants a tensor the plan forgot: simulated by a plan without it."""
    from dopkit.skeleton import LoadCheck

    problem = verification.Problem("layers.0.mlp.fc1.weight", "is missing")
    monkeypatch.setattr(
        verification.skeleton,
        "check_loads",
        lambda config, tensors: LoadCheck((problem,)) if check.pop() else LoadCheck(),
    )
    check = [False, True]  # the merged folder fails, the base itself loads
    with pytest.raises(
        VerificationError, match=r"does not load as ViTModel\n  layers\.0\.mlp\.fc1\.weight: is missing"
    ):
        dopkit.run(make_recipe(vit, ["e0", "e1"]), tmp_path / "out")


def test_what_the_base_lacks_too_is_told_not_refused(vit: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    result = dopkit.run(make_recipe(vit, ["e0"]), tmp_path / "out")  # ViT backbones without the pooler of ViTModel
    assert result.receipt["verified"]["loads"] == (
        "loads as ViTModel with no missing or unexpected key, but for those that the base lacks too "
        "or that were left out: pooler.dense.bias, pooler.dense.weight"
    )


def test_custom_code_is_not_run_and_not_claimed(vit: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    for name in ("base", "e0"):
        folder = tiny.edit(vit / name, tmp_path / name, dict)
        tiny.set_config(
            folder, model_type="own", architectures=["OwnModel"], auto_map={"AutoModel": "modeling.OwnModel"}
        )
        (folder / "modeling.py").write_text("raise SystemExit('never run')")
    result = dopkit.run(make_recipe(tmp_path, ["e0"]), tmp_path / "out")
    assert result.receipt["verified"]["loads"].startswith("loading was not checked: ")
    assert (tmp_path / "out" / "modeling.py").exists()


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
