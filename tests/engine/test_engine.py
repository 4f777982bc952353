"""The loop: which inputs it reads, where it computes, what it refuses to write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import save_file

import dopkit
from dopkit import device
from dopkit.errors import MergeError, PlanError
from dopkit.planning import BLOCK_ELEMENTS

MakeRecipe = Callable[..., dopkit.Recipe]


@pytest.mark.parametrize(("value", "solver"), [(float("nan"), "average"), (float("inf"), "dop"), (float("nan"), "dop")])
def test_nan_and_infinity_are_traced_to_the_model(
    vit: Path, tmp_path: Path, make_recipe: MakeRecipe, value: float, solver: str
) -> None:
    def spoil(tensors: tiny.Tensors) -> tiny.Tensors:
        name = next(name for name in tensors if name.endswith(("query.weight", "q_proj.weight")))
        tensors[name][1, 2:4] = value
        return tensors

    for name in ("base", "e0"):
        tiny.edit(vit / name, tmp_path / name, dict)
    tiny.edit(vit / "e1", tmp_path / "e1", spoil)
    with pytest.raises(MergeError) as caught:
        dopkit.run(make_recipe(tmp_path, ["e0", "e1"], solver), tmp_path / "out")
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].place == "./e1"
    assert "holds 2 values that are NaN or infinite" in caught.value.problems[0].what
    assert not (tmp_path / "out").exists()


def test_a_result_too_large_for_its_dtype_is_refused(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    for name, value in (("a", 6e4), ("b", 8e4)):
        (tmp_path / name).mkdir()
        save_file({"layer.weight": torch.full((3, 3), value)}, tmp_path / name / "model.safetensors")
    recipe = make_recipe(tmp_path, ["a", "b"], "average", base=None, dtype="float16")
    with pytest.raises(MergeError, match=r"layer\.weight(.|\n)*does not fit F16(.|\n)*bfloat16"):
        dopkit.run(recipe, tmp_path / "out")


def test_blocks_give_what_the_whole_tensor_gives(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    """An elementwise merge is cut into row blocks; the bits do not know it."""
    rows = 3 * BLOCK_ELEMENTS // 1000 + 7
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(rows, 1000, generator=generator) for _ in range(3)]
    for name, tensor in zip("abc", tensors, strict=True):
        (tmp_path / name).mkdir()
        save_file({"embed.weight": tensor}, tmp_path / name / "model.safetensors")
    result = dopkit.run(make_recipe(tmp_path, ["a", "b", "c"], "average", base=None), tmp_path / "out")
    assert len(list(result.plan.jobs[0].parts())) == 4
    mean = tensors[0].clone()
    for count, tensor in enumerate(tensors[1:], start=2):
        mean = mean + (tensor - mean) / count
    assert torch.equal(tiny.read(tmp_path / "out")["embed.weight"], mean)


def test_float64_keeps_its_precision(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    tensor = torch.tensor([1.0 + 2**-40], dtype=torch.float64)
    for name in "ab":
        (tmp_path / name).mkdir()
        save_file({"scale": tensor}, tmp_path / name / "model.safetensors")
    dopkit.run(make_recipe(tmp_path, ["a", "b"], "average", base=None), tmp_path / "out")
    assert torch.equal(tiny.read(tmp_path / "out")["scale"], tensor)


def test_inputs_of_other_dtype_than_the_base(vit: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    """The result takes the base's dtype, tensor by tensor, or the recipe's."""

    def half(tensors: tiny.Tensors) -> tiny.Tensors:
        return {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}

    tiny.edit(vit / "base", tmp_path / "base", dict)
    tiny.edit(vit / "e0", tmp_path / "e0", half)
    tiny.edit(vit / "e1", tmp_path / "e1", dict)
    dopkit.run(make_recipe(tmp_path, ["e0", "e1"], "dop"), tmp_path / "own")
    dopkit.run(make_recipe(tmp_path, ["e0", "e1"], "dop", out_dtype="float16"), tmp_path / "half")
    own, cast = tiny.read(tmp_path / "own"), tiny.read(tmp_path / "half")
    assert {tensor.dtype for tensor in own.values()} == {torch.float32}
    assert all(torch.equal(cast[name], own[name].to(torch.float16)) for name in own)  # one cast, at the end


def test_what_does_not_fit_the_device_is_done_on_the_cpu(
    vit: Path, tmp_path: Path, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The meta device stands in for a GPU with room for vectors only: matrices go to the CPU, the receipt says so.

    A meta tensor has no values, so the vectors' jobs are made to run on the CPU after being placed.
    """
    placed: dict[int, str] = {}

    class Small(device.Devices):
        def place(self, working_bytes: int, float64: bool = False) -> torch.device:
            chosen = super().place(working_bytes, float64)
            placed[working_bytes] = chosen.type
            return torch.device("cpu")

    monkeypatch.setattr("dopkit.preparing.choose", lambda *_: Small(torch.device("meta"), 2000))
    result = dopkit.run(make_recipe(vit, ["e0", "e1"], "dop"), tmp_path / "out")
    for job in result.plan.jobs:
        assert placed[job.working_bytes] == ("meta" if job.working_bytes <= 2000 else "cpu")
    assert set(placed.values()) == {"meta", "cpu"}
    assert {tensor["device"] for tensor in result.receipt["tensors"].values()} == {"cpu"}


def test_a_tied_tensor_that_is_stored_twice_must_agree(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    """A config that ties the head to the embedding, and a file that holds both with other values."""
    base = tiny.make_llama(tmp_path / "base", tied=True, shards=False)

    def store_head(scale: float) -> Callable[[tiny.Tensors], tiny.Tensors]:
        return lambda tensors: {**tensors, "lm_head.weight": scale * tensors["model.embed_tokens.weight"]}

    tiny.edit(base, tmp_path / "same", store_head(1.0))
    tiny.edit(base, tmp_path / "other", store_head(2.0))
    plan = dopkit.run(make_recipe(tmp_path, ["same"], "average"), tmp_path / "out").plan
    assert [(one.name, one.why) for one in plan.dropped] == [("lm_head.weight", "tied to embed_tokens.weight")]
    assert "lm_head.weight" not in tiny.read(tmp_path / "out")
    with pytest.raises(PlanError, match=r"lm_head\.weight should be tied to embed_tokens\.weight by its config"):
        dopkit.run(make_recipe(tmp_path, ["other"], "average"), tmp_path / "two")


def test_integers_that_agree_are_copied(vit: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    for name in ("base", "e0", "e1"):
        tiny.edit(vit / name, tmp_path / name, lambda tensors: {**tensors, "position_ids": torch.arange(5)})
    result = dopkit.run(make_recipe(tmp_path, ["e0", "e1"], "average"), tmp_path / "out")
    assert torch.equal(tiny.read(tmp_path / "out")["position_ids"], torch.arange(5))
    assert result.plan.rules()["equal"] == (1, 40)


@pytest.mark.parametrize("heads", ["base", "drop"])
def test_heads(tmp_path: Path, make_recipe: MakeRecipe, heads: str) -> None:
    """Classifiers of other shapes: the base's is kept, or all are left out and the backbone still loads."""
    from transformers import AutoModel, AutoModelForImageClassification

    base = tiny.make_vit(tmp_path / "base", labels=3)
    for index, labels in enumerate((3, 5)):
        tiny.make_expert(tiny.make_vit(tmp_path / f"v{index}", labels), tmp_path / f"e{index}", index)
    out = tmp_path / "out"
    dopkit.run(make_recipe(tmp_path, ["e0", "e1"], "dop", heads=heads), out)
    if heads == "base":
        model = AutoModelForImageClassification.from_pretrained(out)
        assert torch.equal(model.classifier.weight, tiny.read(base)["classifier.weight"])
    else:
        assert not any("classifier" in name for name in tiny.read(out))
        model, report = AutoModel.from_pretrained(out, add_pooling_layer=False, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"]


def test_fused_experts_are_merged_one_by_one(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    """Each slice of a 3-D expert weight gets what it would get as a matrix of its own."""
    generator = torch.Generator().manual_seed(3)
    for name in ("base", "a", "b"):
        stacked = torch.randn(3, 6, 4, generator=generator)
        single = {f"layer.{index}.weight": stacked[index].clone() for index in range(3)}
        (tmp_path / name).mkdir()
        save_file({"mlp.experts.gate_up_proj": stacked, **single}, tmp_path / name / "model.safetensors")
    result = dopkit.run(make_recipe(tmp_path, ["a", "b"], "dop"), tmp_path / "out")
    found = tiny.read(tmp_path / "out")
    rules = {job.name: (str(job.role), job.rule.name) for job in result.plan.jobs}
    assert rules["mlp.experts.gate_up_proj"] == ("experts", "dop exact")
    for index in range(3):
        assert torch.equal(found["mlp.experts.gate_up_proj"][index], found[f"layer.{index}.weight"])
    steps = result.receipt["tensors"]["mlp.experts.gate_up_proj"]["steps"]
    assert [(step["slice"], step["step"]) for step in steps] == [(0, 2), (1, 2), (2, 2)]


def test_conv1d_is_a_transposed_linear_layer(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    """GPT-2's weights are merged by DOP as linear ones are: transposed, the same numbers come out."""
    base = tiny.make_gpt2(tmp_path / "base")
    for index in range(2):
        tiny.make_expert(base, tmp_path / f"e{index}", index + 1)
    parameters = {"svd_proj_space": "u"}  # tells the two sides apart
    result = dopkit.run(make_recipe(tmp_path, ["e0", "e1"], "dop", parameters=parameters), tmp_path / "out")
    job = next(job for job in result.plan.jobs if job.name.endswith("h.0.mlp.c_fc.weight"))
    assert (str(job.role), job.shape, job.rule.name) == ("conv1d", (16, 64), "dop exact")
    for name in ("base", "e0", "e1"):
        (tmp_path / "as-linear" / name).mkdir(parents=True)
        transposed = tiny.read(tmp_path / name)[job.name].T.contiguous()
        save_file({"fc.weight": transposed}, tmp_path / "as-linear" / name / "model.safetensors")
    recipe = make_recipe(tmp_path / "as-linear", ["e0", "e1"], "dop", parameters=parameters)
    dopkit.run(recipe, tmp_path / "linear")
    found, wanted = tiny.read(tmp_path / "out")[job.name], tiny.read(tmp_path / "linear")["fc.weight"].T
    assert float((found - wanted).abs().max()) < 1e-6


@pytest.mark.parametrize("method", ["average", "ties", "dop", "opcm", "model_stock"])
def test_tensors_that_hold_nothing(tmp_path: Path, make_recipe: MakeRecipe, method: str) -> None:
    """As a sharded training may leave them: no rows, or rows of no length."""
    generator = torch.Generator().manual_seed(0)
    for name in ("base", "a", "b"):
        (tmp_path / name).mkdir()
        tensors = {"layer.weight": torch.randn(4, 3, generator=generator)}
        tensors |= {"none.weight": torch.zeros(0, 3), "hollow.weight": torch.zeros(3, 0), "bias": torch.zeros(0)}
        save_file(tensors, tmp_path / name / "model.safetensors")
    dopkit.run(make_recipe(tmp_path, ["a", "b"], method), tmp_path / "out")
    shapes = {name: tuple(tensor.shape) for name, tensor in tiny.read(tmp_path / "out").items()}
    assert shapes == {"layer.weight": (4, 3), "none.weight": (0, 3), "hollow.weight": (3, 0), "bias": (0,)}
