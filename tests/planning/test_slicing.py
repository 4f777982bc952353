"""Slices of layers and parts of models: what goes where, what is refused, and what transformers makes of the result."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch

import dopkit
from dopkit.errors import PlanError, RecipeError


def plan(folder: Path, text: str) -> dopkit.Plan:
    return dopkit.plan(dopkit.parse_recipe(text, folder=folder), folder / "out")


def said(folder: Path, text: str) -> list[str]:
    with pytest.raises((PlanError, RecipeError)) as caught:
        plan(folder, text)
    return [str(problem) for problem in caught.value.problems]


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llamas")
    tiny.make_llama(folder / "a", dtype=torch.float32, layers=4)
    tiny.make_expert(folder / "a", folder / "b", seed=1)
    tiny.make_llama(folder / "short", dtype=torch.float32, layers=2)
    return folder


def passthrough(*slices: str) -> str:
    lines = (f"- sources: [{{model: ./{one.split()[0]}, layer_range: {one.split(' ', 1)[1]}}}]" for one in slices)
    return "merge_method: passthrough\nslices:\n" + "\n".join(lines) + "\n"


def test_layers_take_the_place_that_the_slices_give_them(llamas: Path, tmp_path: Path) -> None:
    recipe = dopkit.parse_recipe(passthrough("a [0, 2]", "b [1, 4]", "a [3, 4]"), folder=llamas)
    dopkit.run(recipe, tmp_path / "out")
    merged, a, b = (tiny.read(folder) for folder in (tmp_path / "out", llamas / "a", llamas / "b"))
    origin = [(a, 0), (a, 1), (b, 1), (b, 2), (b, 3), (a, 3)]
    for number, (model, layer) in enumerate(origin):
        own = {name: tensor for name, tensor in merged.items() if f"layers.{number}." in name}
        assert len(own) == 9
        for name, tensor in own.items():
            assert torch.equal(tensor, model[name.replace(f"layers.{number}.", f"layers.{layer}.")])
    assert torch.equal(merged["model.embed_tokens.weight"], a["model.embed_tokens.weight"])  # as the first slice
    assert torch.equal(merged["lm_head.weight"], a["lm_head.weight"])  # as the last one
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert len(loaded.model.layers) == loaded.config.num_hidden_layers == 6


def test_every_tensor_that_no_slice_takes_is_accounted_for(llamas: Path) -> None:
    made = plan(llamas, passthrough("a [0, 2]", "b [1, 4]"))
    left = {(one.ref.name, one.name) for one in made.dropped if one.why == "no slice takes it"}
    assert ("a", "model.layers.2.mlp.up_proj.weight") in left and ("b", "model.embed_tokens.weight") in left
    assert ("a", "lm_head.weight") in left and ("b", "lm_head.weight") not in left
    read = {(made.models[one.model].ref.name, one.name) for job in made.jobs for one in job.inputs}
    assert not read & left
    assert len(read | left) == 2 * len(tiny.read(llamas / "a"))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (passthrough("a [0, 5]"), "a: has 4 layers in layers, so there is no layer 4"),
        ("merge_method: ties\nbase_model: ./a\nslices:\n- sources: [{model: ./b, layer_range: [0, 2]}]\n",
         "its rule (ties) reads the base, and the slice says nothing of the base's layers"),
        ("merge_method: linear\nparameters: {weight: 1}\nmodules: {encoder: {models: [./a, ./b]}}\n",
         "modules: the model has no part 'encoder'"),
        ("merge_method: linear\nparameters: {weight: 1}\nmodules: {layers: {models: [./a, ./b]}}\n",
         "no part under `modules` takes "),
        ("merge_method: linear\nmodels: [./a, ./b]\nparameters: {weight: [{filter: self_atn, value: 1}, {value: 2}]}\n",
         "weight: the filter 'self_atn' takes in no tensor"),
        ("merge_method: linear\nmodels: [./a, {model: ./b, parameters: {weight: [{filter: mlp, value: 1}]}}]\n"
         "parameters: {weight: [{filter: mlp, value: 1}]}\n",
         "no filter of 'weight' takes it in; add an entry without a filter"),
        ("merge_method: slerp\nbase_model: ./a\nmodels: [./a, ./b]\nparameters: {t: [{filter: mlp, value: 1}]}\n",
         "no filter of 't' takes it in; add an entry without a filter"),
    ],
)  # fmt: skip
def test_refused_before_anything_is_read(llamas: Path, text: str, what: str) -> None:
    assert any(what in problem for problem in said(llamas, text)), said(llamas, text)
    assert not (llamas / "out").exists()


def test_a_misspelt_filter_is_told_what_it_may_mean(llamas: Path) -> None:
    weight = "[{filter: self_atn, value: 1}, {value: 2}]"
    text = f"merge_method: linear\nmodels: [./a, ./b]\nparameters: {{weight: {weight}}}\n"
    assert "did you mean 'self_attn'?" in said(llamas, text)[0]


def test_steps_state_and_growth_are_refused_for_slices(llamas: Path, tmp_path: Path) -> None:
    recipe = dopkit.parse_recipe(passthrough("a [0, 2]", "b [1, 4]"), folder=llamas)
    with pytest.raises(PlanError, match="1 problem") as caught:
        dopkit.run(recipe, tmp_path / "out", dopkit.Options(save_steps=True))
    assert "layers put together from slices" in str(caught.value.problems[0])
    dopkit.run(recipe, tmp_path / "out")
    with pytest.raises(PlanError) as refused:
        dopkit.add(tmp_path / "out", [str(llamas / "short")])
    assert "put together from slices" in str(refused.value.problems[0])


def test_parts_of_an_encoder_decoder(tmp_path: Path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=32, d_model=8, d_kv=4, d_ff=16, num_layers=3, num_decoder_layers=2, num_heads=2,
        tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "a")
    tiny.make_expert(tmp_path / "a", tmp_path / "b", seed=1)
    text = """\
merge_method: linear
parameters: {weight: 1}
modules:
  encoder:
    slices:
    - sources: [{model: ./a, layer_range: [0, 2]}, {model: ./b, layer_range: [0, 2]}]
    - sources: [{model: ./a, layer_range: [1, 3]}]
  decoder: {models: [./b]}
  shared: {models: [./a]}
"""
    result = dopkit.run(dopkit.parse_recipe(text, folder=tmp_path), tmp_path / "out")
    merged, a, b = (tiny.read(folder) for folder in (tmp_path / "out", tmp_path / "a", tmp_path / "b"))
    name = "encoder.block.{}.layer.0.SelfAttention.q.weight"
    assert torch.allclose(merged[name.format(1)], (a[name.format(1)] + b[name.format(1)]) / 2, atol=1e-7)
    assert torch.equal(merged[name.format(3)], a[name.format(2)])
    assert torch.equal(merged["decoder.final_layer_norm.weight"], b["decoder.final_layer_norm.weight"])
    assert torch.equal(merged["shared.weight"], a["shared.weight"])
    loaded = T5ForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert (loaded.config.num_layers, loaded.config.num_decoder_layers) == (4, 2)
    assert "no missing or unexpected key" in result.receipt["verified"]["loads"]
