"""What mergekit 0.1.5 lets through, and dopkit does not: the lines of docs/mergekit.md that have no test elsewhere.

The comments say what mergekit made of the same folders, on the CPU with torch 2.13 and transformers 5.23.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import scored
import tiny
import torch

import dopkit
from dopkit.errors import DopkitError, MergeError, OutputError, PlanError, RecipeError

INPUTS = Path(__file__).parent / "golden" / "mergekit" / "inputs"
EXTRA = "model.layers.0.self_attn.q_norm.weight"


def linear(folder: Path, *models: str) -> dopkit.Recipe:
    entries = "".join(f"- {{model: {model}, parameters: {{weight: 0.5}}}}\n" for model in models)
    return dopkit.parse_recipe(f"merge_method: linear\nmodels:\n{entries}", folder=folder)


def said(error: DopkitError) -> str:
    return " / ".join(map(str, error.problems))


def test_a_slice_without_layers() -> None:
    """mergekit writes a model without layers, and num_hidden_layers: -1."""
    text = "merge_method: passthrough\nslices: [{sources: [{model: ./d0, layer_range: [0, -1]}]}]\n"
    with pytest.raises(RecipeError) as caught:
        dopkit.parse_recipe(text, folder=INPUTS)
    assert "layer_range: [0, -1] holds no layers" in said(caught.value)


@pytest.mark.parametrize(("models", "what"), [(["e1", "extra"], "holds 1 tensor"), (["extra", "e1"], "lacks 1 tensor")])
def test_a_tensor_that_one_model_has(models: list[str], what: str, tmp_path: Path) -> None:
    """mergekit writes the 21 tensors of its definition of a Llama, and says nothing of the other one."""
    tiny.edit(INPUTS / "e0", tmp_path / "extra", lambda tensors: {**tensors, EXTRA: torch.ones(8)})
    (tmp_path / "e1").symlink_to(INPUTS / "e1")
    with pytest.raises(PlanError) as caught:
        dopkit.plan(linear(tmp_path, *(f"./{model}" for model in models)))
    assert what in said(caught.value) and EXTRA in said(caught.value) and "`copy: [" in said(caught.value)


def test_a_value_that_is_no_number(tmp_path: Path) -> None:
    """mergekit merges it into the result."""

    def spoil(tensors: tiny.Tensors) -> tiny.Tensors:
        spoilt = tensors["model.norm.weight"].clone()
        spoilt[0] = float("nan")
        return {**tensors, "model.norm.weight": spoilt}

    tiny.edit(INPUTS / "e0", tmp_path / "spoilt", spoil)
    with pytest.raises(MergeError) as caught:
        dopkit.run(linear(tmp_path, str(INPUTS / "e1"), "./spoilt"), tmp_path / "out")
    assert "model.norm.weight holds 1 value" in said(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_image_model_is_whole_and_has_its_processor(tmp_path: Path) -> None:
    """mergekit writes 8 of the 40 tensors (none of a layer), no preprocessor_config.json, and ends without an error."""
    tiny.make_vit(tmp_path / "base", labels=3)
    (tmp_path / "base" / "preprocessor_config.json").write_text(json.dumps(scored.PROCESSOR))
    tiny.make_expert(tmp_path / "base", tmp_path / "expert", seed=1)
    dopkit.run(linear(tmp_path, "./base", "./expert"), tmp_path / "out")
    base, expert, merged = (tiny.read(tmp_path / name) for name in ("base", "expert", "out"))
    assert len(merged) == len(base) == 40
    assert all(torch.allclose(merged[name], (base[name] + expert[name]) / 2, atol=1e-7) for name in base)
    assert (tmp_path / "out" / "preprocessor_config.json").exists()


def test_another_model_in_the_output_folder(tmp_path: Path) -> None:
    """mergekit writes new shards and an index beside the old model.safetensors, which transformers then loads."""
    dopkit.run(linear(INPUTS, "./e0"), tmp_path / "out")
    before = tiny.weights(tmp_path / "out")
    with pytest.raises(OutputError, match="in the way"):
        dopkit.run(linear(INPUTS, "./e1"), tmp_path / "out", dopkit.Options(max_shard_size=20_000))
    assert tiny.weights(tmp_path / "out") == before
    dopkit.run(linear(INPUTS, "./e1"), tmp_path / "out", dopkit.Options(max_shard_size=20_000, overwrite=True))
    assert "model.safetensors" not in tiny.weights(tmp_path / "out")
    assert tiny.same(tiny.read(tmp_path / "out"), tiny.read(INPUTS / "e1"))


def test_the_last_slice_may_have_more_sources_than_the_first(tmp_path: Path) -> None:
    """mergekit takes the last norm and the head from the first of them alone."""
    text = """\
merge_method: linear
slices:
- sources: [{model: ./d0, layer_range: [0, 2], parameters: {weight: 1}}]
- sources:
  - {model: ./d1, layer_range: [2, 5], parameters: {weight: 1}}
  - {model: ./d2, layer_range: [2, 5], parameters: {weight: 3}}
"""
    dopkit.run(dopkit.parse_recipe(text, folder=INPUTS), tmp_path / "out")
    merged, first, one, two = (
        tiny.read(folder) for folder in (tmp_path / "out", *(INPUTS / f"d{n}" for n in range(3)))
    )
    assert torch.equal(merged["model.embed_tokens.weight"], first["model.embed_tokens.weight"])
    for name in ("model.norm.weight", "lm_head.weight"):
        assert torch.allclose(merged[name], (one[name] + 3 * two[name]) / 4, atol=1e-7)
