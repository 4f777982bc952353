"""Laws of merging: what must hold for every method, whatever the numbers. The docstring is the law."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch

import dopkit
from dopkit.methods.fold import Context
from dopkit.planning import TensorJob

# Means of one kind or another: of models that are equal they make that model.
MEANS = {
    "average": ("average", {}),
    "exact": ("dop", {}),
    "exact-half": ("dop", {"other": "half", "rank_rule": "below", "alpha": "by-count"}),
    "exact-eps90": ("dop", {"svd_epsilon": 0.9}),
    "adam": ("dop", {"solver": "adam", "num_steps": 5}),
}
# Exact on one model, but sums or projections of several.
FOLDS = {
    "opcm": ("opcm", {}),
    "nullspace": ("nullspace", {}),
    "exact-norm": ("dop", {"scale": "norm"}),
}
OTHERS = {
    "exact-base": ("dop", {"other": "base"}),
    "exact-scaled": ("dop", {"scale": 1.3}),
    "all": ("dop", {"history": "all"}),
    "all-norm": ("dop", {"history": "all", "scale": "norm"}),
    "all-u": ("dop", {"history": "all", "svd_proj_space": "u", "svd_epsilon": 0.9}),
    "wudi": ("wudi", {}),
    "task_arithmetic": ("task_arithmetic", {"lambda": 0.3}),
    "ties": ("ties", {"density": 0.4}),
    "magmax": ("magmax", {}),
}
METHODS = MEANS | FOLDS | OTHERS
MakeRecipe = Callable[..., dopkit.Recipe]


@pytest.fixture(params=METHODS, scope="module")
def method(request: pytest.FixtureRequest) -> dict[str, object]:
    name, parameters = METHODS[request.param]
    return {"method": name, "parameters": parameters}


@pytest.fixture(scope="module")
def merged(llama: Path, tmp_path_factory: pytest.TempPathFactory, make_recipe: MakeRecipe, method: dict) -> Path:
    """Three models merged by the method, in one file; not to be changed."""
    recipe = make_recipe(llama, ["e0", "e1", "e2"], **method)
    return dopkit.run(recipe, tmp_path_factory.mktemp("merged") / "merged").folder


@pytest.mark.parametrize("name", MEANS | FOLDS)
def test_one_model_in_is_that_model_out(llama: Path, tmp_path: Path, make_recipe: MakeRecipe, name: str) -> None:
    """One model in gives that model out, bit for bit."""
    method, parameters = METHODS[name]
    dopkit.run(make_recipe(llama, ["e0"], method, parameters=parameters), tmp_path / "out")
    assert tiny.same(tiny.read(tmp_path / "out"), tiny.read(llama / "e0"))


@pytest.mark.parametrize("name", MEANS)
def test_copies_of_one_model_are_that_model(vit: Path, tmp_path: Path, make_recipe: MakeRecipe, name: str) -> None:
    """n copies of one model give that model, bit for bit."""
    method, parameters = METHODS[name]
    tiny.edit(vit / "base", tmp_path / "base", dict)
    for name in ("a", "b", "c"):
        tiny.edit(vit / "e0", tmp_path / name, dict)
    dopkit.run(make_recipe(tmp_path, ["a", "b", "c"], method, parameters=parameters), tmp_path / "out")
    assert tiny.same(tiny.read(tmp_path / "out"), tiny.read(vit / "e0"))


def test_two_equal_models_give_finite_output(vit: Path, tmp_path: Path, make_recipe: MakeRecipe, method: dict) -> None:
    """Two copies of one model and a third one merge to finite numbers. (Other orders: methods/test_fold_laws.py.)"""
    tiny.edit(vit / "base", tmp_path / "base", dict)
    for name, source in (("a", "e0"), ("b", "e0"), ("c", "e1")):
        tiny.edit(vit / source, tmp_path / name, dict)
    dopkit.run(make_recipe(tmp_path, ["a", "b", "c"], **method), tmp_path / "out")
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tiny.read(tmp_path / "out").values())


@pytest.mark.parametrize("name", ["all", "all-norm", "all-u", "wudi", "task_arithmetic", "ties", "average"])
def test_order_does_not_matter_to_sums(vit: Path, tmp_path: Path, make_recipe: MakeRecipe, name: str) -> None:
    """What is computed from sums is the same in any order, within 1e-5 of the task vector's norm."""
    method, parameters = METHODS[name]
    base, found = tiny.read(vit / "base"), []
    for number, order in enumerate((["e0", "e1", "e2"], ["e2", "e1", "e0"], ["e1", "e2", "e0"])):
        out = tmp_path / str(number)
        dopkit.run(make_recipe(vit, order, method, parameters=parameters), out)
        found.append(tiny.read(out))
    for key in base:
        norm = float((found[0][key] - base[key]).norm())
        assert all(float((one[key] - found[0][key]).norm()) <= 1e-5 * norm for one in found), key


def test_the_same_recipe_gives_the_same_bytes(
    llama: Path, merged: Path, tmp_path: Path, make_recipe: MakeRecipe, method: dict
) -> None:
    """Two identical runs produce identical files."""
    dopkit.run(make_recipe(llama, ["e0", "e1", "e2"], **method), tmp_path / "two")
    assert tiny.weights(merged) == tiny.weights(tmp_path / "two")


def test_shard_size_changes_only_file_names(
    llama: Path, merged: Path, tmp_path: Path, make_recipe: MakeRecipe, method: dict
) -> None:
    """One file or many, every tensor holds the same bits."""
    recipe = make_recipe(llama, ["e0", "e1", "e2"], **method)
    dopkit.run(recipe, tmp_path / "many", dopkit.Options(max_shard_size=3000))
    assert len(list((tmp_path / "many").glob("model-*.safetensors"))) > 5
    assert tiny.same(tiny.read(merged), tiny.read(tmp_path / "many"))


def test_frozen_layers_give_finite_output(vit: Path, tmp_path: Path, make_recipe: MakeRecipe, method: dict) -> None:
    """Models that left a layer as the base has it, or that never moved at all, merge to finite numbers."""
    tiny.edit(vit / "base", tmp_path / "base", dict)
    tiny.make_expert(
        vit / "base", tmp_path / "a", 1, only=lambda name: "layers.0" not in name and "layer.0" not in name
    )
    tiny.make_expert(vit / "base", tmp_path / "b", 2)
    tiny.edit(vit / "base", tmp_path / "c", dict)
    dopkit.run(make_recipe(tmp_path, ["c", "a", "b"], **method), tmp_path / "out")
    for tensor in tiny.read(tmp_path / "out").values():
        assert bool(torch.isfinite(tensor).all())


def test_streaming_equals_a_naive_merge_in_memory(
    vit: Path, tmp_path: Path, make_recipe: MakeRecipe, method: dict
) -> None:
    """Tensor by tensor from disk gives what loading everything, folding and scaling gives."""
    models = ["e0", "e1", "e2"]
    recipe = make_recipe(vit, models, **method)
    plan = dopkit.run(recipe, tmp_path / "out").plan
    base, experts = tiny.read(vit / "base"), [tiny.read(vit / model) for model in models]
    merged = {job.name: fold_alone(job, recipe, base, experts) for job in plan.jobs}
    scale = plan.scale or 1.0
    if scale == "norm":
        scale = sum(distance(expert, base) for expert in experts) / 3 / distance(merged, base)
    for name, tensor in tiny.read(tmp_path / "out").items():
        expected = merged[name] if scale == 1 else base[name] + scale * (merged[name] - base[name])
        # The engine adds the squares up block by block: the last digits of a measured scale may differ.
        close = torch.equal if plan.scale is None else torch.allclose
        assert close(tensor, expected), name


def fold_alone(job: TensorJob, recipe: dopkit.Recipe, base: tiny.Tensors, experts: list[tiny.Tensors]) -> torch.Tensor:
    if job.rule.fold is None:
        return base[job.name]
    fold, given = job.rule.load(), base[job.name]
    context = Context(recipe.parameters, job.role, 1)
    state = fold.start(given, experts[0][job.name].clone(), context)
    for step, expert in enumerate(experts[1:], start=2):
        context = Context(recipe.parameters, job.role, step)
        state = fold.step(state, expert[job.name].clone(), context)
    return fold.finish(state, context)


def distance(one: tiny.Tensors, other: tiny.Tensors) -> float:
    """The Frobenius norm of the difference over all tensors."""
    return sum(float((one[name].double() - other[name].double()).square().sum()) for name in one) ** 0.5


def test_average_is_the_mean(vit: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    """`average` is the arithmetic mean, to float32 rounding."""
    dopkit.run(make_recipe(vit, ["e0", "e1", "e2"], "average", base=None), tmp_path / "out")
    experts = [tiny.read(vit / model) for model in ("e0", "e1", "e2")]
    for name, tensor in tiny.read(tmp_path / "out").items():
        mean = torch.stack([expert[name].double() for expert in experts]).mean(0)
        assert float((tensor - mean).abs().max()) < 2e-7, name


@pytest.mark.parametrize("name", ["exact", "exact-eps90", "adam"])
def test_a_fold_lowers_its_own_loss(vit: Path, tmp_path: Path, make_recipe: MakeRecipe, name: str) -> None:
    """No step of DOP ends above the objective it started from."""
    method, parameters = METHODS[name]
    result = dopkit.run(make_recipe(vit, ["e0", "e1", "e2"], method, parameters=parameters), tmp_path / "out")
    steps = [step for tensor in result.receipt["tensors"].values() for step in tensor.get("steps", [])]
    assert len(steps) == 2 * 12  # two steps; query, key, value, output and two MLP matrices in two layers
    for step in steps:
        assert 0 <= step["objective_after"] <= step["objective_before"], step


def test_order_matters_to_dop_and_not_to_the_mean(vit: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    """The order of the list is the order of the merge."""
    found = {}
    for method in ("average", "dop"):
        for models in (["e0", "e1", "e2"], ["e2", "e0", "e1"]):
            out = tmp_path / f"{method}-{models[0]}"
            dopkit.run(make_recipe(vit, models, method), out)
            found[method, models[0]] = tiny.read(out)
    name = next(name for name, tensor in found["dop", "e0"].items() if tensor.ndim == 2)
    assert torch.allclose(found["average", "e0"][name], found["average", "e2"][name], atol=1e-7)
    assert float((found["dop", "e0"][name] - found["dop", "e2"][name]).norm()) > 1e-3


@pytest.mark.slow
def test_hash_seed_changes_nothing(llama: Path, tmp_path: Path) -> None:
    """PYTHONHASHSEED 0 and 1, and this process's own, give the same bytes, recipe and config."""
    recipe = tmp_path / "recipe.yaml"
    models = "".join(f"  - {llama}/e{index}\n" for index in (2, 0, 3, 1))
    recipe.write_text(f"base_model: {llama}/base\nmerge_method: dop\nmodels:\n{models}")
    out = tmp_path / "out"

    def written() -> tuple[object, ...]:
        return tiny.weights(out), (out / "dopkit_recipe.yaml").read_bytes(), (out / "config.json").read_bytes()

    dopkit.run(dopkit.load_recipe(recipe), out)
    here = written()
    for seed in "01":
        subprocess.run(
            [sys.executable, "-m", "dopkit", "run", str(recipe), "-o", str(out), "--overwrite", "-q"],
            env={**os.environ, "PYTHONHASHSEED": seed}, check=True,
        )  # fmt: skip
        assert written() == here, seed
