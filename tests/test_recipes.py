"""The recipes that come with dopkit: each says when to use it, checks, is listed, and gives what its method promises.

What they name is too large to be downloaded by a test. Stand-ins of the same architectures are merged instead, and
every tensor is compared with the method's formula, written out here, with the numbers of the recipe put in by hand;
`dop` and `dare_ties`, whose arithmetic has tests of its own, with their folds on the same tensors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import standins
import tiny
import torch
from methods.folding import fold
from standins import LAYERS, TEXT, classifiers, language_model, lora, of_one_base, of_other_tokens, saved, towers

import dopkit
from dopkit import refs
from dopkit.checkpoints import open_checkpoint
from dopkit.methods import Rule, rules
from dopkit.methods.parameters import DopParameters
from dopkit.planning import TensorJob

RECIPES = Path(__file__).parent.parent / "recipes"
FILES = sorted(RECIPES.glob("*.yaml"))
WIDE = {**TEXT, "hidden_size": 32, "num_key_value_heads": 1}
IMAGE = {**LAYERS, "image_size": 8, "patch_size": 4}
ROUNDING = {"F32": 1e-6, "BF16": 2**-8}

Models = Sequence[torch.Tensor]  # one tensor of every model of the recipe in float64, the base or the donor first
Formula = Callable[[TensorJob, Models], torch.Tensor]


def when(recipe: Path) -> str:
    """The comment that a recipe begins with, in one line."""
    lines = recipe.read_text().split("\n")
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return " ".join(line.removeprefix("#").strip() for line in lines[:end])


def listed(recipe: Path) -> str:
    """Its line in the table of recipes/README.md."""
    sentence = re.split(r"(?<=[.:])\s", when(recipe))[0].removesuffix(".").removesuffix(":")
    return f"| [{recipe.stem}]({recipe.name}) | `{dopkit.load_recipe(recipe).merge_method}` | {sentence} |"


@pytest.mark.parametrize("recipe", FILES, ids=lambda path: path.stem)
def test_it_says_when_to_use_it_and_reads_back_the_same(recipe: Path) -> None:
    assert 60 < len(when(recipe)) < 360
    loaded = dopkit.load_recipe(recipe)
    again = dopkit.parse_recipe(loaded.to_yaml(RECIPES), name=loaded.name, folder=RECIPES)
    assert again.to_data(RECIPES) == loaded.to_data(RECIPES)
    assert [ref.key for ref in again.refs] == [ref.key for ref in loaded.refs]


def test_the_list_is_the_folder() -> None:
    table = [line for line in (RECIPES / "README.md").read_text().split("\n") if line.startswith("| [")]
    assert sorted(table) == [listed(recipe) for recipe in FILES]


def layer_of(job: TensorJob) -> int | None:
    found = re.match(r"layers\.(\d+)\.", job.canonical)
    return int(found[1]) if found else None


def soup(job: TensorJob, models: Models) -> torch.Tensor:
    simpo, dpo, kto = models
    return (2 * simpo + dpo + kto) / 4


def halves(job: TensorJob, models: Models) -> torch.Tensor:
    return (models[0] + models[1]) / 2


def chat_vector(job: TensorJob, models: Models) -> torch.Tensor:
    base, language, chat = models
    return language + 0.8 * (chat - base)


def arc(job: TensorJob, models: Models) -> torch.Tensor:
    """Five layers: the points of the gradients stand at depths 0, 1/3, 2/3 and 1."""
    first, second = (model.flatten() for model in models)
    t, layer = 0.5, layer_of(job)
    if layer is not None and ("self_attn" in job.name or "mlp" in job.name):
        t = 0.6 * layer / 4 if "self_attn" in job.name else 1 - 0.6 * layer / 4
    cosine = float(first @ second / (first.norm() * second.norm()))
    if cosine > 0.9995:
        return ((1 - t) * first + t * second).view(models[0].shape)
    angle = torch.arccos(torch.tensor(cosine, dtype=torch.float64))
    parts = torch.sin((1 - t) * angle) * first + torch.sin(t * angle) * second
    return (parts / torch.sin(angle)).view(models[0].shape)


def stock(job: TensorJob, models: Models) -> torch.Tensor:
    base, *tasks = models
    one, two, three = vectors = [(task - base).flatten() for task in tasks]
    pairs = [(one, two), (one, three), (two, three)]
    cosine = sum(float(left @ right / (left.norm() * right.norm())) for left, right in pairs) / 3
    t = max(0.0, 3 * cosine / (1 + 2 * cosine))
    return base + t * (sum(vectors) / 3).view(base.shape)


def elected(job: TensorJob, models: Models) -> torch.Tensor:
    """The largest fifth of each, at least one entry; then the side with more weight, and its weighted mean."""
    base, *tasks = models
    kept = []
    for task in tasks:
        delta = task - base
        least = delta.abs().flatten().sort(descending=True).values[max(1, int(0.2 * delta.numel())) - 1]
        kept.append(torch.where(delta.abs() >= least, delta, 0.0))
    weighted = [1.0 * kept[0], 0.5 * kept[1]]
    sign = torch.where(weighted[0] + weighted[1] >= 0, 1.0, -1.0)
    agree = [(part * sign > 0).double() for part in kept]
    total = agree[0] * weighted[0] + agree[1] * weighted[1]
    weights = agree[0] + 0.5 * agree[1]
    return base + torch.where(weights > 0, total / weights.clamp(min=0.1), 0.0)


def least_interference(job: TensorJob, models: Models) -> torch.Tensor:
    base, *tasks = models
    if job.rule.name == "mean":
        return sum(tasks) / len(tasks)
    deltas = [task - base for task in tasks]
    gram = sum(delta.T @ delta / delta.square().sum() for delta in deltas)
    right = sum(delta @ delta.T @ delta / delta.square().sum() for delta in deltas)
    ridge = 0.1 * gram.trace() / len(gram)
    mean = sum(deltas) / len(deltas)
    return base + torch.linalg.solve(gram + ridge * torch.eye(len(gram)).double(), (right + ridge * mean).T).T


def energies(job: TensorJob, models: Models) -> torch.Tensor:
    """Each by its share of the squares, of those entries that have the sign of the sum; rows of tokens that only the
    first model has are its own.
    """
    base, first, second = (model.clone() for model in models)
    if "embed_tokens" in job.name or "lm_head" in job.name:
        base[2:4] = second[2:4] = first[2:4]
    deltas = [first - base, second - base]
    weights = [float(delta.square().sum()) for delta in deltas]
    sign = torch.where(deltas[0] + deltas[1] >= 0, 1.0, -1.0)
    agree = [(delta.sign() == sign).double() for delta in deltas]
    total = sum(weight * part * delta for weight, part, delta in zip(weights, agree, deltas, strict=True))
    shares = sum(weight * part for weight, part in zip(weights, agree, strict=True))
    return base + torch.where(shares > 0, total / shares.clamp(min=1e-9), 0.0)


def folded(rule: Rule, job: TensorJob, models: Models, **known: Any) -> torch.Tensor:
    base, *tasks = (model.float() for model in models)
    return fold(rule, list(job.parameters), base, tasks, job.role, **known)[0].double()


def projected(job: TensorJob, models: Models) -> torch.Tensor:
    if job.rule.name == "mean":
        return sum(models[1:]) / len(models[1:])
    assert set(job.parameters) == {DopParameters()}
    return folded(rules.DOP_EXACT, job, models)


def dropped(job: TensorJob, models: Models) -> torch.Tensor:
    assert [(own.density, own.weight) for own in job.parameters] == [(0.5, 0.6), (0.5, 0.4)]
    return folded(job.rule, job, models, seed=1, tensor=job.canonical, names=["OpenThinker-7B", "Bespoke-Stratos-7B"])


def pretrained_bert(folder: Path) -> Path:
    """As bert-base-uncased lies on the Hub: the class that its config names has no pooler and only one of its heads."""
    saved("BertForPreTraining", **TEXT)(folder)
    tiny.set_config(folder, architectures=["BertForMaskedLM"])
    return folder


# Recipe: the models that stand in, and the formula.
CASES: dict[str, tuple[Callable[[Path, Sequence[str]], None], Formula]] = {
    "bert-classifiers": (
        classifiers(pretrained_bert, "BertForSequenceClassification", **TEXT), least_interference,
    ),
    "clip-vit-b32-towers": (towers, projected),
    "llama-3-8b-chat-vector": (of_one_base(language_model("Llama"), "meta-llama/Meta-Llama-3-8B"), chat_vector),
    "llama-3-8b-soup": (of_one_base(language_model("Llama")), soup),
    "llama-3-8b-stock": (of_one_base(language_model("Llama"), "meta-llama/Meta-Llama-3-8B-Instruct"), stock),
    "llama-3.1-8b-experts": (of_one_base(language_model("Llama"), "meta-llama/Llama-3.1-8B"), projected),
    "llama-3.1-8b-ties": (of_one_base(language_model("Llama"), "meta-llama/Llama-3.1-8B"), elected),
    "minilm-embedders": (of_one_base(saved("BertModel", **TEXT)), halves),
    "mistral-7b-slerp": (of_one_base(language_model("Mistral", layers=5)), arc),
    "qwen2.5-32b-reasoning": (of_other_tokens(language_model("Qwen2")), energies),
    "qwen2.5-7b-dare-ties": (of_one_base(language_model("Qwen2"), "Qwen/Qwen2.5-7B-Instruct"), dropped),
    "vit-classifiers": (classifiers(saved("ViTModel", **IMAGE), "ViTForImageClassification", **IMAGE), projected),
}  # fmt: skip
NOTED = {"bert-classifiers", "clip-vit-b32-towers", "qwen2.5-32b-reasoning", "vit-classifiers"}  # by the plan
ELSEWHERE = {"llama-3.1-8b-layers", "mistral-7b-deeper", "mistral-7b-adapters", "quickstart"}  # below; test_quickstart


def test_every_recipe_has_a_golden_result() -> None:
    assert {*CASES, *ELSEWHERE} == {recipe.stem for recipe in FILES}


def run(name: str, make: Callable[[Path, Sequence[str]], None], root: Path) -> dopkit.Result:
    """The recipe merged on stand-ins below ``root``, into ``root/out``."""
    recipe = dopkit.load_recipe(RECIPES / f"{name}.yaml")
    make(root, [str(ref.repo) for ref in recipe.refs])
    return dopkit.run(standins.local(recipe, root), root / "out")


@pytest.mark.parametrize("name", CASES)
def test_its_result_is_the_formulas(name: str, tmp_path: Path) -> None:
    make, formula = CASES[name]
    result = run(name, make, tmp_path)
    plan, found = result.plan, tiny.read(tmp_path / "out")
    assert plan.notes == () or name in NOTED
    sources = [tiny.read(Path(str(source.ref.folder))) for source in plan.merged_models]
    donor = tiny.read(Path(str(plan.donor.ref.folder)))
    assert found.keys() == {job.name for job in plan.jobs}
    for job in plan.jobs:
        if not job.inputs:  # what no model holds
            assert torch.equal(found[job.name], donor[job.donor])
            continue
        models = [sources[one.model][one.name].double() for one in job.inputs]
        based = job.base is not None or formula in (projected, least_interference)
        want = formula(job, [donor[job.donor].double(), *models] if based else models)
        error = (found[job.name].double() - want).abs()
        assert bool((error <= ROUNDING[job.dtype] * want.abs() + 1e-6).all()), (job.name, float(error.max()))
    assert {job.dtype for job in plan.jobs} == {"BF16" if plan.recipe.dtype else "F32"}


@pytest.mark.parametrize("name", ["bert-classifiers", "vit-classifiers"])
def test_it_keeps_every_head(name: str, tmp_path: Path) -> None:
    result = run(name, CASES[name][0], tmp_path)
    for number, source in enumerate(result.plan.merged_models, 2):
        expert, head = tiny.read(Path(str(source.ref.folder))), source.ref.name
        loaded = dopkit.load(tmp_path / "out", head=head)
        assert loaded.config.num_labels == number
        assert torch.equal(loaded.classifier.weight, expert["classifier.weight"])


LAYERS_OF = {
    # Recipe: for each layer of the result, the model and its layer.
    "llama-3.1-8b-layers": [
        *((0, layer) for layer in range(6)),
        *((1, layer) for layer in range(6, 28)),
        *((0, layer) for layer in range(28, 32)),
    ],
    "mistral-7b-deeper": [*((0, layer) for layer in range(24)), *((0, layer) for layer in range(8, 32))],
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS_OF)
def test_it_takes_layers_as_they_are(name: str, tmp_path: Path) -> None:
    family = "Mistral" if name.startswith("mistral") else "Llama"
    result = run(name, of_one_base(language_model(family, layers=32)), tmp_path)
    sources = [tiny.read(Path(str(source.ref.folder))) for source in result.plan.merged_models]
    found = tiny.read(tmp_path / "out")
    want = {key: tensor for key, tensor in sources[0].items() if ".layers." not in key}
    for number, (model, layer) in enumerate(LAYERS_OF[name]):
        old, new = f"model.layers.{layer}.", f"model.layers.{number}."
        want |= {new + key.removeprefix(old): one for key, one in sources[model].items() if key.startswith(old)}
    assert tiny.same(found, want)
    assert dopkit.load(tmp_path / "out").config.num_hidden_layers == len(LAYERS_OF[name])


def test_adapters_become_one_that_is_the_best_of_what_dop_makes_of_them(tmp_path: Path) -> None:
    """Three of rank 8 on matrices of 32 x 32: of the merge of whole matrices the sixteen largest singular values."""
    run("mistral-7b-adapters", lora(saved("MistralForCausalLM", **WIDE)), tmp_path)
    base = refs.parse("./mistralai/Mistral-7B-v0.1", tmp_path)
    names = ("predibase/gsm8k", "predibase/magicoder", "predibase/customer_support")
    *three, merged = (open_checkpoint(base.with_adapter(refs.parse(f"./{name}", tmp_path))) for name in (*names, "out"))
    adapted = [name for name in merged.specs if "q_proj" in name or "v_proj" in name]
    assert len(adapted) == 4
    for name in adapted:
        plain = tiny.read(Path(str(base.folder)))[name]
        whole, _ = fold(rules.DOP_EXACT, DopParameters(), plain, [model.read(name) for model in three])
        left, values, right = torch.linalg.svd((whole - plain).double())
        assert len(values) == 16 or values[16] > 0.01
        want = left[:, :16] * values[:16] @ right[:16]
        assert torch.allclose((merged.read(name) - plain).double(), want, atol=1e-5), name
