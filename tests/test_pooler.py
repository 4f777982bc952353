"""A base with a pooler that its own class does not read, as bert-base-uncased has one: merged if the models have it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import dopkit
from dopkit.errors import PlanError
from dopkit.skeleton import build

MakeRecipe = Callable[..., dopkit.Recipe]
POOLER = {"bert.pooler.dense.bias", "bert.pooler.dense.weight"}
SIZES = {
    "vocab_size": 48, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 16, "initializer_range": 0.3,
}  # fmt: skip
IDS = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 3, 1]])


def make_base(folder: Path) -> Path:
    """Two heads and a pooler; the config names the class that reads one of the heads, and no pooler."""
    from transformers import BertConfig, BertForPreTraining

    torch.manual_seed(0)
    BertForPreTraining(BertConfig(**SIZES)).save_pretrained(folder)
    tiny.set_config(folder, architectures=["BertForMaskedLM"])
    assert set(tiny.read(folder)) >= POOLER | {"cls.seq_relationship.weight"}
    return folder


def make_experts(root: Path, kind: str) -> None:
    """``e0`` and ``e1``: classifiers of 3 and 5 classes on noisy copies of the base."""
    import transformers

    for index, number in enumerate((3, 5)):
        model = getattr(transformers, kind).from_pretrained(root / "base", num_labels=number)
        model.save_pretrained(root / f"plain{index}")
        tiny.make_expert(root / f"plain{index}", root / f"e{index}", seed=index + 1, scale=0.1)


def naive(root: Path, kind: str, index: int) -> Any:
    """The classifier of one expert on the mean of both backbones."""
    import transformers

    models = [getattr(transformers, kind).from_pretrained(root / f"e{one}") for one in range(2)]
    one, two = (model.base_model.state_dict() for model in models)
    models[index].base_model.load_state_dict({name: (one[name] + two[name]) / 2 for name in one})
    return models[index].eval()


def test_the_pooler_is_merged(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    make_base(tmp_path / "base")
    make_experts(tmp_path, "BertForSequenceClassification")
    result = dopkit.run(make_recipe(tmp_path, ["e0", "e1"], "average", heads="per-task"), tmp_path / "out")
    merged, one, two = (tiny.read(tmp_path / name) for name in ("out", "e0", "e1"))
    for name in POOLER:
        assert torch.allclose(merged[name], (one[name] + two[name]) / 2)
    assert not any(name.startswith("cls.") for name in merged)
    for index in range(2):
        with torch.no_grad():
            found = dopkit.load(tmp_path / "out", head=f"e{index}")(input_ids=IDS).logits
            assert torch.allclose(found, naive(tmp_path, "BertForSequenceClassification", index)(IDS).logits, atol=1e-5)
    assert result.receipt["verified"]["loads"] == "loads as BertModel with no missing or unexpected key"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["BertModel"]
    assert type(dopkit.load(tmp_path / "out")).__name__ == "BertModel"


def test_the_pooler_is_merged_without_heads_too(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    make_base(tmp_path / "base")
    make_experts(tmp_path, "BertForSequenceClassification")
    plan = dopkit.plan(make_recipe(tmp_path, ["e0", "e1"], heads="drop"))
    found = {job.name: (job.canonical, job.role, job.rule.name) for job in plan.jobs if job.name in POOLER}
    assert found == {
        "bert.pooler.dense.bias": ("pooler.dense.bias", "bias", "mean"),
        "bert.pooler.dense.weight": ("pooler.dense.weight", "linear", "dop exact"),
    }


def test_a_pooler_that_no_model_has_stays_the_bases(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    make_base(tmp_path / "base")
    make_experts(tmp_path, "BertForTokenClassification")
    recipe = make_recipe(tmp_path, ["e0", "e1"], "average", heads="per-task")
    said = "./base: no model holds pooler.dense.bias, pooler.dense.weight of its backbone: kept as in the base"
    assert f"{said}, as with `copy`" in dopkit.plan(recipe).notes
    result = dopkit.run(recipe, tmp_path / "out")
    merged, base = tiny.read(tmp_path / "out"), tiny.read(tmp_path / "base")
    assert all(torch.equal(merged[name], base[name]) for name in POOLER)
    assert result.receipt["verified"]["loads"] == "loads as BertModel with no missing or unexpected key"
    for index in range(2):
        with torch.no_grad():
            found = dopkit.load(tmp_path / "out", head=f"e{index}")(input_ids=IDS).logits
            assert torch.allclose(found, naive(tmp_path, "BertForTokenClassification", index)(IDS).logits, atol=1e-5)


def test_a_kept_pooler_stays_when_the_merge_grows(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    make_base(tmp_path / "base")
    make_experts(tmp_path, "BertForTokenClassification")
    dopkit.run(make_recipe(tmp_path, ["e0"], "average", heads="per-task"), tmp_path / "one")
    written = dopkit.load_recipe(tmp_path / "one" / "dopkit_recipe.yaml")
    assert written.copied == ("pooler.dense.bias", "pooler.dense.weight")
    dopkit.add(tmp_path / "one", [str(tmp_path / "e1")], tmp_path / "two")
    dopkit.run(make_recipe(tmp_path, ["e0", "e1"], "average", heads="per-task"), tmp_path / "both")
    assert tiny.same(tiny.read(tmp_path / "two"), tiny.read(tmp_path / "both"))


def test_a_pooler_that_some_models_have_is_told(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    make_base(tmp_path / "base")
    make_experts(tmp_path, "BertForSequenceClassification")
    make_base(tmp_path / "other" / "base")
    make_experts(tmp_path / "other", "BertForTokenClassification")
    with pytest.raises(PlanError) as caught:
        dopkit.plan(make_recipe(tmp_path, ["e0", "other/e1"], heads="per-task"))
    said = "./other/e1: lacks 2 tensors of ./base: bert.pooler.dense.bias, bert.pooler.dense.weight"
    assert said in str(caught.value)
    assert "copy: [pooler.dense.bias, pooler.dense.weight]" in str(caught.value)
    recipe = make_recipe(tmp_path, ["e0", "other/e1"], heads="per-task", copy=["pooler.*"])
    assert {job.rule.name for job in dopkit.plan(recipe).jobs if job.name in POOLER} == {"base"}


def test_with_its_head_the_class_is_the_bases_own(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    """Whole models of one class: what it does not read goes by its own name, as before."""
    make_base(tmp_path / "base")
    tiny.make_expert(tmp_path / "base", tmp_path / "e0", 1)
    plan = dopkit.plan(make_recipe(tmp_path, ["e0"]))
    assert {job.canonical for job in plan.jobs if job.name in POOLER} == POOLER


def test_what_only_the_headless_class_reads(tmp_path: Path) -> None:
    config = json.loads((make_base(tmp_path / "base") / "config.json").read_text())
    shapes = {name: tuple(tensor.shape) for name, tensor in tiny.read(tmp_path / "base").items()}
    own, both = build(config, shapes), build(config, shapes, headless=True)
    others = {"cls.seq_relationship.bias", "cls.seq_relationship.weight"}
    assert (own.unread, own.unknown) == (frozenset(), POOLER | others)
    assert (both.unread, both.unknown) == (POOLER, others)
    assert both.roles["bert.pooler.dense.weight"].canonical == "pooler.dense.weight"
    assert {name: role for name, role in both.roles.items() if name not in POOLER} == {
        name: role for name, role in own.roles.items() if name not in POOLER
    }
    bare = build({**config, "architectures": ["BertModel"]}, shapes)
    assert build({**config, "architectures": ["BertModel"]}, shapes, headless=True) == bare
