"""A whole CLIP as the base of vision towers: read as the tower that the models are; and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import scored
import tiny
import torch

import dopkit
from dopkit.errors import PlanError
from dopkit.planning.towers import tower_config

MakeRecipe = Callable[..., dopkit.Recipe]

TOWERS = {
    "CLIPVisionModel": ("clip", "vision_config"),
    "CLIPVisionModelWithProjection": ("clip", "vision_config"),
    "CLIPTextModel": ("clip", "text_config"),
    "CLIPTextModelWithProjection": ("clip", "text_config"),
    "SiglipVisionModel": ("siglip", "vision_config"),
    "SiglipTextModel": ("siglip", "text_config"),
}


def make_siglip(folder: Path) -> Path:
    """A SigLIP of 2 layers, 16 wide, with the file of an image processor."""
    from transformers import SiglipConfig, SiglipModel

    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    text = {**layers, **special, "vocab_size": 32, "max_position_embeddings": 16, "projection_size": 16}
    config = SiglipConfig(text_config=text, vision_config={**layers, "image_size": 8, "patch_size": 4})
    torch.manual_seed(0)
    model = SiglipModel(config)
    scored.stir(model)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(scored.PROCESSOR))
    return folder


def prefix(kind: str) -> str:
    return TOWERS[kind][1].replace("config", "model.")


def make_towers(root: Path, kind: str, bare: bool = False) -> None:
    """``base``, whole, its ``tower``, and experts ``e0`` and ``e1`` of that.

    They are spelled as in the base, or ``bare``, as transformers 5 saves a tower that it made itself.
    """
    import transformers

    whole = scored.make_clip(root / "base") if TOWERS[kind][0] == "clip" else make_siglip(root / "base")
    tower = getattr(transformers, kind).from_pretrained(whole)
    tower.save_pretrained(root / "spelled")
    tiny.edit(root / "spelled", root / "tower", lambda tensors: inside(tensors, kind) if bare else tensors)
    for index in range(2):
        tiny.make_expert(root / "tower", root / f"e{index}", seed=index + 1, scale=0.1)


def inside(tensors: tiny.Tensors, kind: str) -> tiny.Tensors:
    return {name.removeprefix(prefix(kind)): tensor for name, tensor in tensors.items()}


def answer(model: Any) -> torch.Tensor:
    if "Text" in type(model).__name__:
        return model.eval()(input_ids=torch.tensor([[3, 5, 6, 7], [9, 8, 2, 3]])).last_hidden_state
    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(9))
    return model.eval()(pixel_values=pixels).last_hidden_state


@pytest.mark.parametrize(
    ("kind", "bare"), [(kind, bare) for kind in TOWERS for bare in (False, True) if not (bare and "Projection" in kind)]
)
def test_a_whole_base_is_read_as_the_tower(kind: str, bare: bool, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    make_towers(tmp_path, kind, bare)
    recipe = make_recipe(tmp_path, ["e0", "e1"], "task_arithmetic", parameters={"lambda": 0.5})
    result = dopkit.run(recipe, tmp_path / "out")

    base, one, two = (tiny.read(tmp_path / name) for name in ("tower", "e0", "e1"))
    merged = tiny.read(tmp_path / "out")
    assert merged.keys() == one.keys()  # as the models spell them
    assert bare != any(name.startswith(prefix(kind)) for name in merged)
    wanted = {name: base[name] + 0.5 * (one[name] - base[name] + two[name] - base[name]) for name in base}
    assert all(torch.allclose(merged[name], wanted[name], atol=1e-6) for name in wanted)

    reloaded, naive = dopkit.load(tmp_path / "out"), dopkit.load(tmp_path / "tower")
    naive.load_state_dict(wanted if "Projection" in kind else inside(wanted, kind))
    assert type(reloaded).__name__ == kind
    with torch.no_grad():
        assert torch.allclose(answer(reloaded), answer(naive), atol=1e-5)

    config = json.loads((tmp_path / "out" / "config.json").read_text())
    own = json.loads((tmp_path / "e0" / "config.json").read_text())
    assert {key: config[key] for key in ("architectures", "model_type", "hidden_size", "dtype")} == {
        key: own[key] for key in ("architectures", "model_type", "hidden_size", "dtype")
    }
    assert (tmp_path / "out" / "preprocessor_config.json").read_bytes() == (
        tmp_path / "base" / "preprocessor_config.json"
    ).read_bytes()
    assert result.receipt["verified"]["loads"] == f"loads as {kind} with no missing or unexpected key"


def test_the_rest_of_the_base_is_accounted_for(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    make_towers(tmp_path, "CLIPVisionModel")
    plan = dopkit.plan(make_recipe(tmp_path, ["e0", "e1"]))
    whole = set(tiny.read(tmp_path / "base"))
    beside = {name for name in whole if not name.startswith("vision_model.")}
    assert {"logit_scale", "visual_projection.weight"} < beside
    assert {one.name for one in plan.dropped} == beside
    assert {(one.ref, one.why) for one in plan.dropped} == {
        (plan.donor.ref, "not part of CLIPVisionModel, which the models are")
    }
    assert {job.donor for job in plan.jobs} == whole - beside
    assert plan.notes == ("./base: read as the CLIPVisionModel in it",)


@pytest.mark.parametrize("method", ["dop", "opcm", "average"])
def test_the_same_bytes_as_with_the_tower_itself(method: str, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    make_towers(tmp_path, "CLIPVisionModel")
    parts = {"copy": ["embeddings.*"]}
    for base in ("base", "tower"):
        dopkit.run(make_recipe(tmp_path, ["e0", "e1"], method, base=base, **parts), tmp_path / f"from {base}")
    assert tiny.same(tiny.read(tmp_path / "from base"), tiny.read(tmp_path / "from tower"))


def test_relations_are_those_to_the_tower(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    make_towers(tmp_path, "SiglipVisionModel")
    whole, tower = (dopkit.inspect(make_recipe(tmp_path, ["e0", "e1"], base=base)) for base in ("base", "tower"))
    assert whole.tensors == tower.tensors


def test_a_tower_that_grows(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    """The merge is a tower, and the base that it goes on from is whole."""
    make_towers(tmp_path, "CLIPVisionModel")
    options = dopkit.Options(keep_state=True)
    dopkit.run(make_recipe(tmp_path, ["e0"]), tmp_path / "one", options)
    dopkit.add(tmp_path / "one", [str(tmp_path / "e1")], tmp_path / "two")
    dopkit.run(make_recipe(tmp_path, ["e0", "e1"]), tmp_path / "both", options)
    assert tiny.same(tiny.read(tmp_path / "two"), tiny.read(tmp_path / "both"))


def refusal(recipe: dopkit.Recipe) -> str:
    with pytest.raises(PlanError) as caught:
        dopkit.plan(recipe)
    return str(caught.value)


def test_whole_models_on_a_tower_are_refused(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    make_towers(tmp_path, "CLIPVisionModel")
    tiny.make_expert(tmp_path / "base", tmp_path / "whole", 1)
    said = refusal(make_recipe(tmp_path, ["whole"], base="tower"))
    assert "./whole: is a whole CLIPModel, and ./tower (CLIPVisionModel) is only one tower of it" in said
    assert "Take a whole model as `base_model`, or merge towers only." in said


def test_towers_and_whole_models_are_not_mixed(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    make_towers(tmp_path, "CLIPVisionModel")
    tiny.make_expert(tmp_path / "base", tmp_path / "whole", 1)
    said = refusal(make_recipe(tmp_path, ["e0", "whole"]))
    assert "e0: is a CLIPVisionModel, only one tower of ./base (CLIPModel)" in said
    assert "whole: " not in said


def test_towers_of_both_kinds_are_not_mixed(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    make_towers(tmp_path, "CLIPVisionModel")
    make_towers(tmp_path / "text", "CLIPTextModel")
    said = refusal(make_recipe(tmp_path, ["e0", "text/e0"]))
    assert "e0: is a CLIPVisionModel, only one tower" in said and "e0: is a CLIPTextModel, only one tower" in said


def test_a_tower_of_another_size_is_refused(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    make_towers(tmp_path, "CLIPVisionModel")
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    CLIPVisionModel(config).save_pretrained(tmp_path / "wide")
    assert "wide: was not fine-tuned from ./base: hidden_size is 32, there 16" in refusal(
        make_recipe(tmp_path, ["e0", "wide"])
    )


def test_a_tensor_too_many_is_told_by_its_name(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    make_towers(tmp_path, "CLIPVisionModel")
    tiny.edit(tmp_path / "e0", tmp_path / "more", lambda tensors: {**tensors, "adapter.down": torch.ones(2)})
    assert "more: holds 1 tensor that ./base lacks: adapter.down" in refusal(make_recipe(tmp_path, ["more", "e1"]))


def test_a_part_that_is_called_otherwise_is_no_tower(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    """The config says there is one, and the base's file has nothing under those names."""
    make_towers(tmp_path, "CLIPVisionModel")
    tiny.edit(
        tmp_path / "base",
        tmp_path / "other",
        lambda tensors: {name.replace("vision_model.", "eyes.lens."): one for name, one in tensors.items()},
    )
    said = refusal(make_recipe(tmp_path, ["e0"], base="other"))
    assert "e0: is a CLIPVisionModel, only one tower of ./other (CLIPModel)" in said
    assert "the tensors have the same names" in said


def test_tower_configs() -> None:
    part = {"model_type": "clip_vision_model", "architectures": ["CLIPVisionModel"], "hidden_size": 8}
    vision = {"model_type": "clip_vision_model", "hidden_size": 16, "torch_dtype": None}
    whole = {"model_type": "clip", "vision_config": vision, "text_config": {"model_type": "clip_text_model"}}
    assert tower_config(whole, part) == {**vision, "architectures": ["CLIPVisionModel"]}
    stated = {**whole, "torch_dtype": "float16", "quantization_config": {"quant_method": "gptq"}}
    assert tower_config(stated, part) == {
        **vision, "architectures": ["CLIPVisionModel"], "torch_dtype": "float16",
        "quantization_config": {"quant_method": "gptq"},
    }  # fmt: skip
    assert tower_config(whole, whole) is tower_config(part, whole) is tower_config(whole, {}) is None
    assert tower_config(None, part) is tower_config(whole, None) is None
    twice = {"model_type": "pair", "encoder_config": vision, "decoder_config": vision}
    assert tower_config(twice, part) is None  # which of the two?
