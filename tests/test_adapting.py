"""Adapters merged into one adapter: the same as the full merge, loaded by PEFT, and without the base's weights."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from adapters import applied, assert_the_full_merge, make_adapted, make_adapter, peft_warnings, recipe
from click.testing import CliRunner
from hubserver import CLIENT_WARNING, TestHub, connect
from safetensors.torch import load_file

import dopkit
from dopkit.cli import main
from dopkit.errors import MergeError, PlanError
from dopkit.methods.coefficients import coefficients
from dopkit.methods.parameters import Parameters
from dopkit.publishing import PushOptions


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapted(tmp_path_factory.mktemp("adapted"))


WEIGHTS = "[{model: ./a0, parameters: {weight: 0.5}}, {model: ./a1, parameters: {weight: 2}}, \
{model: ./a2, parameters: {weight: -0.25}}]"


@pytest.mark.parametrize(
    ("method", "models", "parameters"),
    [
        ("average", "[./a0, ./a1, ./a2]", {}),
        ("task_arithmetic", WEIGHTS, {"lambda": 0.7}),
        ("task_arithmetic", WEIGHTS, {"normalize": True}),
        ("linear", WEIGHTS, {}),
        ("linear", WEIGHTS.replace("weight: 2", "weight: 0.75"), {"normalize": False}),
    ],
)
def test_it_is_the_full_merge(
    method: str, models: str, parameters: dict[str, object], adapted: Path, tmp_path: Path
) -> None:
    made = recipe(adapted, method, models, parameters=parameters, output="adapter")
    result = dopkit.run(made, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", "dopkit_receipt.json", "dopkit_recipe.yaml",
        "dopkit_state.json",
    ]  # fmt: skip
    assert_the_full_merge(adapted, tmp_path / "out", made)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    ranks = {
        name: tensor.shape[0] for name, tensor in load_file(tmp_path / "out" / "adapter_model.safetensors").items()
    }
    q = "model.layers.{}.self_attn.q_proj"
    assert [ranks[f"base_model.model.{q.format(layer)}.lora_A.weight"] for layer in (0, 1)] == [4 + 3 + 2, 4 + 3 + 5]
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert result.receipt["verified"]["applies"] == "applies to 7 modules of base, every value finite"


def test_peft_loads_it_and_merges_it_to_the_same(adapted: Path, tmp_path: Path) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    dopkit.run(recipe(adapted, output="adapter"), tmp_path / "out")
    with peft_warnings():
        model = AutoModelForCausalLM.from_pretrained(adapted / "base")
        merged = peft.PeftModel.from_pretrained(model, tmp_path / "out").merge_and_unload()
        merged.save_pretrained(tmp_path / "merged")
    ours, theirs = applied(adapted, tmp_path / "out"), tiny.read(tmp_path / "merged")
    assert ours.keys() == theirs.keys()
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-6


def test_a_rank_cuts_to_the_largest_singular_values(adapted: Path, tmp_path: Path) -> None:
    made = recipe(adapted, output="adapter", rank=5)
    result = dopkit.run(made, tmp_path / "out")
    whole = dopkit.run(recipe(adapted, output="adapter"), tmp_path / "whole").folder
    base, exact, cut = tiny.read(adapted / "base"), applied(adapted, whole), applied(adapted, tmp_path / "out")
    name = "model.layers.0.self_attn.q_proj.weight"
    singular = torch.linalg.svdvals((exact[name] - base[name]).double())
    lost = float(singular[5:].square().sum() / singular.square().sum())
    assert 0.001 < lost < 0.9
    (step,) = result.receipt["tensors"]["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"]["steps"]
    assert (step["rank"], step["kept"]) == (9, 5)
    assert step["lost"] / step["energy"] == pytest.approx(lost, rel=1e-3)
    before, after = (sum(float((one[key] - base[key]).norm() ** 2) for key in base) for one in (exact, cut))
    parts = [one["steps"][0] for one in result.receipt["tensors"].values() if "steps" in one]
    assert sum(one["lost"] for one in parts) == pytest.approx(before - after, rel=1e-2)
    assert result.receipt["verified"]["rank"].endswith(f"% of the energy cut off in {len(parts)} modules")
    distance = float((cut[name] - exact[name]).norm())
    assert distance == pytest.approx(math.sqrt(lost) * float(singular.norm()), rel=1e-3)
    assert {job.rule.name for job in result.plan.jobs} == {"factors cut", "factors joined"}


def test_a_rank_beyond_the_matrix_is_cut_without_loss(adapted: Path, tmp_path: Path) -> None:
    for seed in range(3):
        make_adapter(adapted / "base", tmp_path / f"wide{seed}", seed=seed, target_modules=["k_proj"], r=6)
    models = ", ".join(f"{tmp_path}/wide{seed}" for seed in range(3))
    made = recipe(adapted, models=f"[{models}]", output="adapter")
    result = dopkit.run(made, tmp_path / "out")
    assert {min(job.shape) for job in result.plan.jobs} == {8}  # of 18: the matrix is 8x16
    assert_the_full_merge(adapted, tmp_path / "out", made)


def test_conv1d_and_convolutions(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForImageClassification

    kinds: dict[str, tuple[Path, Any, dict[str, Any]]] = {
        "gpt2": (
            tiny.make_gpt2(tmp_path / "gpt2" / "base"),
            AutoModelForCausalLM,
            {"target_modules": ["c_attn", "c_fc", "wte"], "fan_in_fan_out": True},
        ),
        "vit": (
            tiny.make_vit(tmp_path / "vit" / "base", labels=2),
            AutoModelForImageClassification,
            {"target_modules": ["projection", "q_proj"]},
        ),
    }
    for kind, (base, auto, config) in kinds.items():
        root = tmp_path / kind
        for seed in range(2):
            make_adapter(base, root / f"a{seed}", auto, seed=seed, stored_embeddings=False, **config)
        for name, rank in (("joined", None), ("cut", 3)):
            made = recipe(root, models="[./a0, ./a1]", output="adapter", **({"rank": rank} if rank else {}))
            dopkit.run(made, root / name / "out")
        assert_the_full_merge(root, root / "joined" / "out", recipe(root, models="[./a0, ./a1]", output="adapter"))
        assert {
            min(tensor.shape[:2]) for tensor in load_file(root / "cut" / "out" / "adapter_model.safetensors").values()
        } == {3}


def test_the_base_is_not_read_and_not_downloaded(
    adapted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dopkit.checkpoints.shared import Shared

    monkeypatch.setattr(Shared, "lend", lambda *given: pytest.fail("a tensor of the base was read"))
    monkeypatch.setattr(Shared, "aside", lambda *given: pytest.fail("a tensor of the base was read"))
    dopkit.run(recipe(adapted, output="adapter"), tmp_path / "out")


def test_a_finished_one_is_told_and_an_unfinished_one_continued(
    adapted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(adapted, output="adapter", rank=3)
    dopkit.run(made, tmp_path / "straight")
    from dopkit.adapting import modules

    real, calls = modules.products, []

    def breaks(*given: Any) -> Any:
        calls.append(given[0].module)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(modules, "products", breaks)
    with pytest.raises(KeyboardInterrupt):
        dopkit.run(made, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    dopkit.run(made, tmp_path / "out")
    assert len(calls) == 4 + 4  # three of seven were done
    assert tiny.weights(tmp_path / "out") | {} == tiny.weights(tmp_path / "straight")
    assert dopkit.run(made, tmp_path / "out").already_there
    assert (
        dopkit.plan(made, tmp_path / "out").output_bytes == (tmp_path / "out/adapter_model.safetensors").stat().st_size
    )


def test_an_adapter_that_is_written_to_meanwhile_is_no_source(adapted: Path, tmp_path: Path) -> None:
    shutil.copytree(adapted, tmp_path / "models")

    class Training(dopkit.Progress):
        def tensor(self, name: str) -> None:
            os.utime(tmp_path / "models" / "a1" / "adapter_model.safetensors")

    with pytest.raises(MergeError, match=r"(?s)not what they were when the merge began.*a1: its weights have been"):
        dopkit.run(recipe(tmp_path / "models", output="adapter"), tmp_path / "out", progress=Training())
    assert not (tmp_path / "out").exists()


def test_the_recipe_beside_it_makes_it_again_and_it_can_be_merged_itself(adapted: Path, tmp_path: Path) -> None:
    dopkit.run(recipe(adapted, output="adapter", rank=3, out_dtype="bfloat16"), tmp_path / "out")
    again = dopkit.load_recipe(tmp_path / "out" / "dopkit_recipe.yaml")
    assert (again.output, again.rank) == ("adapter", 3)
    dopkit.run(again, tmp_path / "again")
    assert tiny.weights(tmp_path / "out") == tiny.weights(tmp_path / "again")
    assert {tensor.dtype for tensor in tiny.read(tmp_path / "out").values()} == {torch.bfloat16}
    dopkit.run(recipe(adapted, "dop", f"[{tmp_path}/out, ./a1]"), tmp_path / "merged")


def test_what_cannot_be_one_adapter_is_refused(adapted: Path, tmp_path: Path) -> None:
    def refusal(made: dopkit.Recipe, **options: Any) -> list[str]:
        with pytest.raises(PlanError) as caught:
            dopkit.plan(made, tmp_path / "none", dopkit.Options(**options))
        return [line.replace(str(tmp_path), "") for line in str(caught.value).splitlines()]

    make_adapter(adapted / "base", tmp_path / "dora", use_dora=True, modules_to_save=["lm_head"])
    make_adapter(adapted / "base", tmp_path / "weights", target_modules=[], target_parameters=["q_proj.weight"])
    make_adapter(adapted / "base", tmp_path / "embedding", target_modules=["embed_tokens"])
    other = Path(shutil.copytree(adapted / "base", tmp_path / "other"))
    models = f"[{tmp_path}/dora, {tmp_path}/weights, {{model: {other}, adapter: {adapted}/a0}}, ./base]"
    assert refusal(recipe(adapted, "opcm", models, output="adapter", heads="drop"), stream=True) == [
        "cannot merge: 5 problems",
        "  heads: does not go with `output: adapter`",
        "    Leave it out.",
        "  --stream: does not go with `output: adapter`",
        "    Leave it out.",
        "  ./base: is no adapter",
        f"  /other+{adapted}/a0: stands on another base than ./base",
        "  output: adapter: opcm leaves no factors (average, linear, task_arithmetic and dop do)",
        "    Leave out `output: adapter`: the result is then a whole model.",
    ]
    assert refusal(recipe(adapted, "average", models.split(", {")[0] + "]", output="adapter")) == [
        "cannot merge: 3 problems",
        "  ./base+/dora: is a DoRA, whose norms are no product of factors",
        "  ./base+/dora: changes more than by factors: lm_head.weight",
        "  ./base+/weights: has target_parameters, which are not joined",
    ]
    assert refusal(recipe(adapted, models=f"[{tmp_path}/embedding]", output="adapter"))[1:] == [
        "  ./base+/embedding: stores a whole embedding beside its factors: model.embed_tokens.weight",
        "    Save it with `save_embedding_layers=False`, if that embedding was not trained or resized.",
    ]
    asked = recipe(adapted, output="adapter", tokenizer="base", chat_template="auto")
    assert refusal(asked)[1::2] == [
        "  tokenizer: does not go with `output: adapter`",
        "  chat_template: does not go with `output: adapter`",
    ]
    assert refusal(recipe(adapted, output="adapter"), device="mps", max_memory=1_000) == [
        "cannot merge: 1 problem",
        "  --device: does not go with `output: adapter`",
        "    Leave it out.",
    ]
    _, short, remedy = refusal(recipe(adapted, output="adapter"), max_memory=1_000)
    assert re.fullmatch(r"    `--max-memory \d+MB` would do, where there is so much\.", remedy)
    assert re.match(
        r"  too little memory \(.*\): \S+ MB needed \(\S+ MB of it by the program itself\), 1 kB there", short
    )
    weights = WEIGHTS.replace("weight: 2", "weight: 1")
    sums = recipe(adapted, "linear", weights, parameters={"normalize": False}, output="adapter")
    assert refusal(sums)[1] == (
        "  output: adapter: the weights add up to 1.25, so the base would be multiplied as well"
    )


def test_coefficients_of_a_method_by_its_numbers() -> None:
    assert coefficients("average", [Parameters()] * 4) == [0.25] * 4
    with pytest.raises(ValueError, match="ties is no weighted sum"):
        coefficients("ties", [Parameters()])


def test_at_the_command_line(adapted: Path, tmp_path: Path) -> None:
    text = recipe(adapted, output="adapter", rank=4).to_yaml(tmp_path)
    (tmp_path / "r.yaml").write_text(text)
    for arguments, said in (
        (["check", "r.yaml"], ""),
        (["plan", "r.yaml"], "factors cut"),
        (["run", "r.yaml", "-o", "out"], "merged 14 tensors"),
        (["show", "out"], "output: adapter"),
    ):
        arguments = [str(tmp_path / one) if one in ("r.yaml", "out") else one for one in arguments]
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
        assert said in result.stdout
    assert "LoRA adapter of rank 3 to 4 for base" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.filterwarnings(CLIENT_WARNING)
def test_from_the_hub_to_the_hub(adapted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with TestHub() as hub:
        connect(monkeypatch, hub, tmp_path / "cache", token=hub.token("org"))
        for name in ("base", "a0", "a1"):
            hub.create_repo(f"org/{name}", {})
            hub.add_folder(f"org/{name}", adapted / name)
        text = "merge_method: average\nbase_model: org/base\nmodels: [org/a0, org/a1]\noutput: adapter\n"
        made = dopkit.parse_recipe(text, name="merged")
        assert dopkit.plan(made).download_bytes == sum(
            (adapted / name / "adapter_model.safetensors").stat().st_size for name in ("a0", "a1")
        )
        push = dopkit.Options(push=PushOptions("org/merged"))
        dopkit.run(made, tmp_path / "out", push)
        assert not list((tmp_path / "cache").rglob("model*.safetensors"))
        config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
        assert (config["base_model_name_or_path"], len(config["revision"])) == ("org/base", 40)
        again = "merge_method: average\nmodels: [org/merged]\n"
        notes = dopkit.plan(dopkit.parse_recipe(again)).notes
        assert any("adapter of rank 3 to 7 on 7 of 21 tensors" in note for note in notes)
        assert hub.crashes == []
