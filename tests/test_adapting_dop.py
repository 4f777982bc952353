"""DOP on adapters, kept as factors: the same as the full merge of the models that they make."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from adapters import applied, assert_the_full_merge, make_adapted, make_adapter, peft_warnings, recipe
from click.testing import CliRunner

import dopkit
from dopkit.checkpoints.adapter import AdapterCheckpoint
from dopkit.checkpoints.folder import FolderCheckpoint
from dopkit.cli import main
from dopkit.errors import MergeError, PlanError

TWO, THREE, FOUR = "[./a0, ./a1]", "[./a0, ./a1, ./a2]", "[./a3, ./a1, ./a0, ./a2]"
ALPHAS = "[./a0, {model: ./a1, parameters: {alpha: 0.3}}, {model: ./a2, parameters: {alpha: by-count}}]"


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapted(tmp_path_factory.mktemp("adapted"))


@pytest.mark.parametrize(
    ("models", "parameters"),
    [
        (TWO, {}),
        (THREE, {"svd_proj_space": "u"}),
        (THREE, {"svd_proj_space": "v", "alpha": 0.5}),
        (FOUR, {"alpha": "by-count"}),
        (FOUR, {"svd_epsilon": 0.9, "scale": 1.5}),
        (THREE, {"svd_epsilon": 0.9, "rank_rule": "below", "other": "half"}),
        (ALPHAS, {"other": "base"}),
        (THREE, {"exclude": ["*down_proj*"], "scale": "norm"}),
        (FOUR, {"history": "all"}),
        (FOUR, {"history": "all", "scale": "norm", "svd_proj_space": "u"}),
    ],
)
def test_it_is_the_full_merge(models: str, parameters: dict[str, object], adapted: Path, tmp_path: Path) -> None:
    made = recipe(adapted, "dop", models, parameters=parameters, output="adapter")
    dopkit.run(made, tmp_path / "out")
    assert_the_full_merge(adapted, tmp_path / "out", made)


VARYING: dict[str, tuple[str, dict[str, object]]] = {
    "a gradient": ("dop", {"parameters": {"alpha": [0.2, 0.9]}}),
    "a filter": ("task_arithmetic", {"parameters": {"weight": 1.0, "lambda": [
        {"filter": "q_proj", "value": [0.3, 1.0]}, {"value": 0.6},
    ]}}),
    "another method": ("dop", {"methods": [
        {"filter": "*down_proj*", "merge_method": "average"},
        {"filter": "v_proj", "merge_method": "task_arithmetic", "parameters": {"weight": 1.0, "lambda": 0.5}},
    ]}),
    "dop for some": ("average", {"methods": [
        {"filter": "q_proj", "merge_method": "dop", "parameters": {"history": "all"}},
    ]}),
}  # fmt: skip


@pytest.mark.parametrize("kind", VARYING)
def test_methods_and_parameters_may_differ_by_module(kind: str, adapted: Path, tmp_path: Path) -> None:
    method, keys = VARYING[kind]
    made = recipe(adapted, method, FOUR, output="adapter", **keys)
    assert not made.settled
    dopkit.run(made, tmp_path / "out")
    assert_the_full_merge(adapted, tmp_path / "out", made)
    if "all" not in str(keys):
        dopkit.run(recipe(adapted, method, FOUR.replace(", ./a2", ""), output="adapter", **keys), tmp_path / "grown")
        dopkit.add(tmp_path / "grown", [str(adapted / "a2")])
        assert tiny.weights(tmp_path / "grown") == tiny.weights(tmp_path / "out")


def test_what_makes_no_sense_for_some_module_is_refused(adapted: Path, tmp_path: Path) -> None:
    def refusal(method: str, **keys: object) -> str:
        with pytest.raises(PlanError) as caught:
            dopkit.plan(recipe(adapted, method, THREE, output="adapter", **keys), tmp_path / "none")
        return str(caught.value)

    history = [{"filter": "v_proj", "value": "last"}, {"value": "all"}]
    told = refusal("dop", parameters={"history": history, "alpha": 0.5})
    assert "layers.0.self_attn.q_proj.weight: 'alpha' has no effect: history: all" in told
    solver = [{"filter": "q_proj", "value": "exact"}, {"value": "adam"}]
    assert refusal("dop", parameters={"solver": solver}).count("solver: adam: its steps go by single entries") == 1
    assert "opcm leaves no factors" in refusal("dop", methods=[{"filter": "q_proj", "merge_method": "opcm"}])
    weight = [{"filter": "q_proj", "value": 1.0}]  # of the others, none
    assert refusal("linear", parameters={"weight": weight}).count("the weights add up to 0") == 1


def test_plan_receipt_and_card_say_what_was_done(adapted: Path, tmp_path: Path) -> None:
    made = recipe(adapted, "dop", FOUR, output="adapter")
    result = dopkit.run(made, tmp_path / "out")
    assert_the_full_merge(adapted, tmp_path / "out", made)
    assert {name: tensors for name, (tensors, _) in result.plan.rules().items()} == {
        "dop exact on factors": 18,
        "factors joined": 2,  # the embedding is no matrix to dop
    }
    q = "model.layers.0.self_attn.q_proj"
    ours, whole = (dopkit.receipt.read(folder)["tensors"] for folder in (tmp_path / "out", tmp_path / "whole"))
    steps, wanted = ours[f"base_model.model.{q}.lora_B.weight"]["steps"], whole[f"{q}.weight"]["steps"]
    assert [step["step"] for step in steps] == [2, 3, 4]
    for one, other in zip(steps, wanted, strict=True):
        assert one["rank_incoming"] == other["rank_incoming"]
        for key in ("objective_before", "objective_after", "stability_after", "plasticity_after"):
            assert one[key] == pytest.approx(other[key], rel=1e-4)
    shown = CliRunner().invoke(main, ["show", str(tmp_path / "out")])
    assert "the objective over 9 matrices: " in shown.stdout
    card = (tmp_path / "out" / "README.md").read_text()
    assert "merged from 4 adapters with dopkit, by **dop**" in card
    assert "18 by `dop exact on factors`" in card


def test_a_rank_cuts_the_merge_to_its_largest_singular_values(adapted: Path, tmp_path: Path) -> None:
    whole = dopkit.run(recipe(adapted, "dop", output="adapter"), tmp_path / "whole")
    result = dopkit.run(recipe(adapted, "dop", output="adapter", rank=4), tmp_path / "out")
    base, exact, cut = tiny.read(adapted / "base"), applied(adapted, whole.folder), applied(adapted, tmp_path / "out")
    name = "model.layers.1.self_attn.q_proj"
    singular = torch.linalg.svdvals((exact[f"{name}.weight"] - base[f"{name}.weight"]).double())
    *steps, last = result.receipt["tensors"][f"base_model.model.{name}.lora_B.weight"]["steps"]
    assert len(steps) == 2
    assert (last["rank"], last["kept"]) == (12, 4)
    lost = float(singular[4:].square().sum() / singular.square().sum())
    assert last["lost"] / last["energy"] == pytest.approx(lost, rel=1e-3)
    off = (cut[f"{name}.weight"] - exact[f"{name}.weight"]).norm() / singular.norm()
    assert float(off) ** 2 == pytest.approx(lost, rel=1e-3)
    assert result.receipt["verified"]["rank"].endswith(" of the energy cut off in 3 modules")
    assert "dop exact on cut factors" in result.plan.rules()


def test_peft_merges_it_to_the_full_merge(adapted: Path, tmp_path: Path) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    made = recipe(adapted, "dop", FOUR, output="adapter")
    dopkit.run(made, tmp_path / "out")
    dopkit.run(made.model_copy(update={"output": "model"}), tmp_path / "whole")
    with peft_warnings():
        model = AutoModelForCausalLM.from_pretrained(adapted / "base")
        peft.PeftModel.from_pretrained(model, tmp_path / "out").merge_and_unload().save_pretrained(tmp_path / "merged")
    ours, full = tiny.read(tmp_path / "merged"), tiny.read(tmp_path / "whole")
    assert max(float((ours[name] - full[name]).abs().max()) for name in full) < 1e-6


def test_conv1d_has_its_output_side_last(tmp_path: Path) -> None:
    tiny.make_gpt2(tmp_path / "base")
    for seed in range(3):
        config: dict[str, Any] = {"target_modules": ["c_attn", "wte"], "fan_in_fan_out": True}
        make_adapter(tmp_path / "base", tmp_path / f"a{seed}", seed=seed, stored_embeddings=False, **config)
    for space in ("u", "v"):
        made = recipe(tmp_path, "dop", output="adapter", parameters={"svd_proj_space": space})
        (tmp_path / space).mkdir()
        dopkit.run(made, tmp_path / space / "out")
        assert_the_full_merge(tmp_path, tmp_path / space / "out", made)


@pytest.mark.parametrize("method", ["average", "dop"])
def test_nothing_of_the_base_is_read(
    method: str, adapted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[tuple[str, str]] = []
    real = FolderCheckpoint.read

    def counted(self: FolderCheckpoint, name: str, rows: Any = None) -> torch.Tensor:
        reads.append((self.ref.name, name))
        return real(self, name, rows)

    monkeypatch.setattr(FolderCheckpoint, "read", counted)
    monkeypatch.setattr(AdapterCheckpoint, "read", lambda *given: pytest.fail("a whole tensor was made"))
    dopkit.run(recipe(adapted, method, THREE, output="adapter"), tmp_path / "out")
    dopkit.add(tmp_path / "out", [str(adapted / "a3")])
    assert {own for own, _ in reads} == {"a0", "a1", "a2", "a3", "out"}
    assert len(reads) == len(set(reads))  # and each factor once


def test_what_leaves_no_factors_is_refused_by_name(adapted: Path, tmp_path: Path) -> None:
    def refusal(**keys: object) -> list[str]:
        with pytest.raises(PlanError) as caught:
            dopkit.plan(recipe(adapted, "dop", output="adapter", **keys), tmp_path / "none")
        return str(caught.value).splitlines()

    assert refusal(parameters={"solver": "adam"})[1:] == [
        "  solver: adam: its steps go by single entries of the matrix, and leave no factors",
        "    Use `solver: exact`, or leave out `output: adapter`.",
    ]
    assert "exclude: no tensor is called 'nothing'" in refusal(parameters={"exclude": ["nothing"]})[1]
    everything = {"exclude": ["*"], "other": "base"}
    assert refusal(parameters=everything)[1].startswith("  other: base: leaves every module as it is in the base")


def test_what_stays_as_in_the_base_is_told(adapted: Path, tmp_path: Path) -> None:
    parameters = {"other": "base"}
    result = dopkit.run(recipe(adapted, "dop", output="adapter", parameters=parameters), tmp_path / "out")
    left = result.receipt["dropped"]
    assert {one["why"] for one in left} == {"other: base"}
    assert all("embed_tokens.lora_embedding_" in one["tensor"] for one in left)
    assert len(left) == 2 * 2  # of a0 and a2


def test_a_factor_that_is_not_finite(adapted: Path, tmp_path: Path) -> None:
    def spoil(tensors: tiny.Tensors) -> tiny.Tensors:
        name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
        tensors[name][0, 0] = torch.nan
        return tensors

    tiny.edit(adapted / "a1", tmp_path / "spoilt", spoil)
    with pytest.raises(MergeError, match="q_proj.lora_A.weight holds values that are NaN or infinite"):
        dopkit.run(recipe(adapted, "dop", f"[./a0, {tmp_path}/spoilt]", output="adapter"), tmp_path / "out")


def test_the_state_is_as_small_as_the_adapters(adapted: Path, tmp_path: Path) -> None:
    dopkit.run(recipe(adapted, "dop", output="adapter", parameters={"scale": "norm"}), tmp_path / "out")
    state = json.loads((tmp_path / "out" / "dopkit_state.json").read_text())
    assert [one["model"] for one in state["models"]] == ["base+a0", "base+a1", "base+a2"]
    assert state["base"]["model"] == "base"
    base = tiny.read(adapted / "base")
    for number, norm in enumerate(state["norms"]):
        own = applied(adapted, adapted / f"a{number}")
        assert norm == pytest.approx(sum(float((own[name] - base[name]).norm()) ** 2 for name in base) ** 0.5, rel=1e-4)
