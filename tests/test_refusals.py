"""What cannot work is refused before anything is written: one clear answer, exit code 1, no traceback.

Driven through the command line, as a user meets it. Unit tests of the messages are in tests/recipe and tests/planning.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file

from dopkit import methods
from dopkit.cli import main

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """``run(text)`` writes the recipe and runs it; checks that a refusal leaves nothing behind."""
    monkeypatch.chdir(tmp_path)

    def run_recipe(text: str, *options: str) -> Result:
        Path("recipe.yaml").write_text(text)
        before = sorted(os.listdir())
        result = CliRunner().invoke(main, ["run", "recipe.yaml", "-o", "out", "--quiet", *options])
        assert result.exit_code == 1, result.output
        assert isinstance(result.exception, SystemExit)  # told, not thrown
        assert sorted(os.listdir()) == before, "a refusal left something behind"
        return result

    return run_recipe


@pytest.fixture
def models(vit: Path, tmp_path: Path) -> Path:
    for name in ("base", "e0", "e1"):
        shutil.copytree(vit / name, tmp_path / name)
    return tmp_path


RECIPE = "base_model: ./base\nmerge_method: dop\nmodels: [./e0, ./e1]\n"


def test_misspelt_key(run: Run) -> None:
    result = run(RECIPE.replace("base_model", "base_modle"))
    assert result.stderr.splitlines() == [
        "recipe.yaml has 1 problem",
        "  line 1: unknown key 'base_modle' (did you mean 'base_model'?)",
    ]


def test_unknown_method(run: Run) -> None:
    result = run(RECIPE.replace("dop", "dop-2"))
    assert result.stderr.splitlines() == [
        "recipe.yaml has 1 problem",
        f"  line 2: unknown method 'dop-2' (did you mean 'dop'? known: {', '.join(sorted(methods.BUILTIN))})",
    ]


def test_alpha_out_of_bounds(run: Run) -> None:
    result = run(RECIPE + "parameters:\n  alpha: 1.5\n")
    assert result.stderr.splitlines() == [
        "recipe.yaml has 1 problem",
        "  line 5: alpha: 1.5 is not between 0 and 1",
    ]


def test_missing_folders_are_all_named(run: Run, models: Path) -> None:
    result = run(RECIPE.replace("./e0", "./nowhere").replace("./e1", "./nothing"))
    assert result.stderr.splitlines() == [
        "cannot merge: 2 problems",
        f"  ./nowhere: there is no such folder: looked for {models}/nowhere",
        f"  ./nothing: there is no such folder: looked for {models}/nothing",
    ]


def test_truncated_safetensors(run: Run, models: Path) -> None:
    weights = models / "e1" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    result = run(RECIPE)
    assert "cannot merge: 1 problem" in result.stderr
    assert str(weights) in result.stderr
    assert "truncated" in result.stderr


def test_different_vocabularies(run: Run, llama: Path, models: Path) -> None:
    def longer(tensors: tiny.Tensors) -> tiny.Tensors:
        return {
            name: torch.cat([tensor, tensor[:2]]) if name in ("model.embed_tokens.weight", "lm_head.weight") else tensor
            for name, tensor in tensors.items()
        }

    tiny.edit(llama / "e0", models / "longer", longer)
    tiny.set_config(models / "longer", vocab_size=66)
    result = run(f"base_model: {llama}/base\nmerge_method: dop\nmodels: [{llama}/e1, ./longer]\n")
    assert result.stderr.splitlines() == [
        "cannot merge: 1 problem",
        "  ./longer: embedding differs in shape: model.embed_tokens.weight is 66x16, "
        f"in {llama}/base 64x16 (and 1 more)",
        "    The vocabularies differ. Keep the base's with `copy: [embed_tokens.weight]` and `heads: base`.",
    ]


def test_quantised_model(run: Run, models: Path) -> None:
    tiny.set_config(models / "e0", quantization_config={"quant_method": "gptq", "bits": 4})
    result = run(RECIPE)
    assert result.stderr.splitlines() == [
        "cannot merge: 1 problem",
        "  ./e0: is quantised (gptq)",
        "    Merge the original weights, then quantise the result.",
    ]


def test_adapter_as_a_model(run: Run, models: Path) -> None:
    adapter = models / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": null}')
    save_file({"lora_A": torch.ones(2, 2)}, adapter / "adapter_model.safetensors")
    result = run(RECIPE.replace("./e0", "./adapter"))
    assert result.stderr.splitlines() == [
        "cannot merge: 1 problem",
        "  ./adapter cannot be merged as a model: adapter_config.json names no peft_type",
        "    Merge it into its base with PEFT (merge_and_unload, then save_pretrained) and name the result.",
    ]
    result = run(RECIPE.replace("./base", "./adapter"))
    assert "it is an adapter (adapter_config.json), not a whole model" in result.stderr


def test_another_base(run: Run, models: Path) -> None:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=24, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(models / "wider")
    result = run(RECIPE.replace("./e0", "./wider"))
    assert result.stderr.splitlines() == [
        "cannot merge: 1 problem",
        "  ./wider: was not fine-tuned from ./base: hidden_size is 24, there 16, num_hidden_layers is 3, there 2",
    ]


def test_output_folder_in_use(run: Run, models: Path) -> None:
    (models / "out").mkdir()
    (models / "out" / "thesis.tex").write_text("three years of work")
    for options in ([], ["--overwrite"]):
        result = run(RECIPE, *options)
        assert "out: is in the way: it holds files that dopkit did not make" in result.stderr
    assert (models / "out" / "thesis.tex").read_text() == "three years of work"


def test_heads_of_other_shape(run: Run, tmp_path: Path) -> None:
    base = tiny.make_vit(tmp_path / "base", labels=3)
    tiny.make_expert(base, tmp_path / "e0", 1)
    tiny.make_vit(tmp_path / "e1", labels=5)
    result = run(RECIPE)
    assert result.stderr.splitlines() == [
        "cannot merge: 1 problem",
        "  ./e1: output head differs in shape: classifier.bias is 5, in ./base 3 (and 1 more)",
        "    Keep every model's head with `heads: per-task`, the base's with `heads: base`, or none with `drop`.",
    ]


def test_heads_that_are_not_there(run: Run, models: Path) -> None:
    result = run(RECIPE + "heads: per-task\n")
    assert result.stderr.splitlines() == [
        "cannot merge: 1 problem",
        "  `heads: per-task` keeps the models' output heads, and none of the models has one",
        "    Merge the backbones alone with `heads: drop`.",
    ]


def test_a_head_that_nothing_could_load(run: Run, models: Path) -> None:
    tiny.edit(models / "e0", models / "e2", lambda tensors: {**tensors, "classifier.weight": torch.ones(3, 16)})
    result = run(RECIPE.replace("./e0", "./e2") + "heads: per-task\n")
    assert result.stderr.splitlines() == [
        "cannot merge: 1 problem",
        "  ./e2: its output head could not be loaded again: ViTModel has no place for classifier.weight",
        "    Name its class under `architectures` in its config.json. Merge the backbones alone with `heads: drop`.",
    ]


def test_a_head_whose_backbone_is_left_out(run: Run, tmp_path: Path) -> None:
    for name, labels in (("base", None), ("e0", 3), ("e1", 4)):
        tiny.make_vit(tmp_path / name, labels)
    bare = tiny.edit(
        tmp_path / "base", tmp_path / "bare", lambda each: {key: each[key] for key in each if "norm.bias" not in key}
    )
    result = run(RECIPE.replace("./base", str(bare)) + "heads: per-task\ncopy: ['*norm.bias']\n")
    what = f"its output head stands on vit.layernorm.bias, which {bare} has none of to copy"
    remedy = "    Merge the backbones alone with `heads: drop`."
    assert result.stderr.splitlines() == [
        "cannot merge: 2 problems", f"  ./e0: {what}", remedy, f"  ./e1: {what}", remedy
    ]  # fmt: skip


def test_a_head_that_is_not_finite(run: Run, tmp_path: Path) -> None:
    def spoil(tensors: tiny.Tensors) -> tiny.Tensors:
        return {**tensors, "classifier.bias": torch.tensor([0.0, float("nan"), 0.0])}

    tiny.make_vit(tmp_path / "base")
    tiny.edit(tiny.make_vit(tmp_path / "whole", 3), tmp_path / "e0", spoil)
    tiny.make_vit(tmp_path / "e1", 5)
    result = run(RECIPE + "heads: per-task\n")
    assert result.stderr.splitlines() == [
        "cannot merge: 1 problem",
        "  ./e0: classifier.bias holds values that are NaN or infinite",
        "    Fetch the model again, or leave it out.",
    ]


def test_integers_that_differ(run: Run, models: Path) -> None:
    for number, name in enumerate(("base", "e0", "e1")):
        file = models / name / "model.safetensors"
        save_file({**tiny.read(models / name), "steps": torch.tensor([number, 1])}, file)
    result = run(RECIPE)
    assert "  ./e0: steps (I64) differs from ./base, and integers cannot be merged" in result.stderr.splitlines()
    assert "    Take the base's with `copy: [steps]`." in result.stderr.splitlines()
    planned = CliRunner().invoke(main, ["plan", "recipe.yaml", "-o", "out"])
    assert planned.exit_code == 1 and planned.stderr == result.stderr


def test_integers_of_one_kind(run: Run, models: Path) -> None:
    """One sentence for all of them, with the one pattern that settles it."""
    for number, name in enumerate(("base", "e0", "e1")):
        counts = {f"layers.{layer}.steps": torch.tensor([min(number, 1)]) for layer in range(6)}
        save_file({**tiny.read(models / name), **counts}, models / name / "model.safetensors")
    result = run(RECIPE)
    assert result.stderr.splitlines()[0] == "cannot merge: 2 problems"
    assert "and 1 more differ from ./base, and integers cannot be merged" in result.stderr
    assert result.stderr.count('    Take the base\'s with `copy: ["*.steps"]`.') == 2
    Path("recipe.yaml").write_text(RECIPE + 'copy: ["*.steps"]\n')
    assert CliRunner().invoke(main, ["run", "recipe.yaml", "-o", "out"]).exit_code == 0


def test_missing_and_extra_tensors(run: Run, models: Path) -> None:
    def without_norm(tensors: tiny.Tensors) -> tiny.Tensors:
        kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("layernorm")}
        return {**kept, "surplus": torch.zeros(2)}

    shutil.rmtree(models / "e1")
    tiny.edit(models / "e0", models / "e1", without_norm)
    result = run(RECIPE)
    assert result.stderr.splitlines() == [
        "cannot merge: 2 problems",
        "  ./e1: lacks 2 tensors of ./base: layernorm.bias, layernorm.weight",
        "    Take them from the base with `copy: [layernorm.bias, layernorm.weight]`.",
        "  ./e1: holds 1 tensor that ./base lacks: surplus",
        "    Leave them out with `copy: [surplus]`.",
    ]


def test_tied_and_untied_models(run: Run, tmp_path: Path) -> None:
    base = tiny.make_llama(tmp_path / "base", tied=True, shards=False)
    tiny.make_expert(base, tmp_path / "e0", 1)
    tiny.make_llama(tmp_path / "e1", tied=False, shards=False)
    result = run(RECIPE)
    assert result.stderr.splitlines() == [
        "cannot merge: 1 problem",
        "  ./e1: has an output head that ./base lacks: lm_head.weight",
        "    In its config tie_word_embeddings is False, there True: make both alike, or take the untied one as base.",
    ]


def test_too_little_memory(run: Run, models: Path) -> None:
    result = run(RECIPE, "--max-memory", "1MB")
    assert "too little memory (the largest need is for " in result.stderr
    assert "1 MB there" in result.stderr


def test_all_problems_at_once(run: Run, models: Path) -> None:
    tiny.set_config(models / "e0", quantization_config={"quant_method": "awq"})
    (models / "out").mkdir()
    (models / "out" / "notes.txt").write_text("mine")
    result = run(RECIPE)
    assert "cannot merge: 2 problems" in result.stderr
    assert "is quantised (awq)" in result.stderr
    assert "is in the way" in result.stderr


def test_json_carries_the_same_problems(run: Run, models: Path) -> None:
    result = run(RECIPE.replace("./e0", "./nowhere"), "--json")
    assert json.loads(result.stdout) == {
        "error": "cannot merge: 1 problem",
        "problems": [
            {"place": "", "what": f"./nowhere: there is no such folder: looked for {models}/nowhere", "remedy": ""}
        ],
    }
    assert result.stderr == ""


def test_patterns_that_no_tensor_falls_under(run: Run, models: Path) -> None:
    """A misspelt pattern would silently merge what was to be left alone."""
    result = run(RECIPE + 'copy: ["*.qurey.weight"]\nparameters: {exclude: [layernorm.wieght]}\n')
    assert result.stderr.splitlines()[:2] == [
        "cannot merge: 2 problems", "  copy: no tensor is called '*.qurey.weight'",
    ]  # fmt: skip
    assert result.stderr.splitlines()[3:] == [
        "  exclude: no tensor is called 'layernorm.wieght'",
        "    Patterns are held against canonical names (did you mean 'layernorm.weight'?).",
    ]
