"""Merges that see all models at once, and draws, in whole runs: steps, memory, growing, seeds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import save_file

import dopkit
from dopkit import adding, methods
from dopkit.errors import PlanError
from dopkit.planning import BLOCK_ELEMENTS, TensorJob
from dopkit.preparing import Options
from dopkit.roles import Role

MakeRecipe = Callable[..., dopkit.Recipe]


def job(shape: tuple[int, ...], rule: methods.Rule, count: int) -> TensorJob:
    return TensorJob("w", "w", Role.LINEAR, rule, "F32", shape, ("w",) * count, "w", "w")


def test_every_model_counts_in_the_memory_of_a_joint_merge() -> None:
    rule = methods.find("sce").rule_for(methods.find("sce").parameters(), "w", Role.LINEAR, (30, 20))
    two, five = (job((30, 20), rule, count).working_bytes for count in (2, 5))
    assert five - two == 3 * 4 * 30 * 20
    fold = methods.find("ties").rule_for(methods.find("ties").parameters(), "w", Role.LINEAR, (30, 20))
    assert job((30, 20), fold, 2).working_bytes == job((30, 20), fold, 5).working_bytes


@pytest.mark.parametrize("method", ["sce", "tsv"])
def test_a_step_is_the_merge_of_the_models_so_far(
    vit: Path, tmp_path: Path, make_recipe: MakeRecipe, method: str
) -> None:
    dopkit.run(make_recipe(vit, ["e0", "e1", "e2"], method), tmp_path / "all", Options(save_steps=True))
    dopkit.run(make_recipe(vit, ["e0", "e1"], method), tmp_path / "two")
    assert tiny.same(tiny.read(tmp_path / "all" / "steps" / "02"), tiny.read(tmp_path / "two"))
    dopkit.run(make_recipe(vit, ["e0", "e1", "e2"], method), tmp_path / "plain")
    assert tiny.same(tiny.read(tmp_path / "all"), tiny.read(tmp_path / "plain"))


def test_what_was_merged_at_once_grows_from_its_models_only(vit: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    out = tmp_path / "out"
    dopkit.run(make_recipe(vit, ["e0", "e1"], "sce"), out)
    with pytest.raises(PlanError) as caught:
        adding.add(out, [str(vit / "e2")])
    (problem,) = caught.value.problems
    assert problem.what == "sce merges all models at once: what was merged does not tell what went in"
    assert problem.remedy == "Read the earlier models again with --from-experts."
    with pytest.raises(PlanError):
        adding.plan_addition(out, [str(vit / "e2")])
    adding.add(out, [str(vit / "e2")], from_experts=True)
    dopkit.run(make_recipe(vit, ["e0", "e1", "e2"], "sce"), tmp_path / "whole")
    assert tiny.weights(out) == tiny.weights(tmp_path / "whole")


def test_a_method_of_two_models_takes_no_third(vit: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    out = tmp_path / "out"
    dopkit.run(make_recipe(vit, ["e0"], "slerp", parameters={"t": 0.5}), out)
    for from_experts in (False, True):
        with pytest.raises(PlanError) as caught:
            adding.add(out, [str(vit / "e1")], from_experts=from_experts)
        (problem,) = caught.value.problems
        assert (problem.what, problem.remedy) == (f"slerp takes 1 model, and {out} holds them", "")


def test_there_is_no_state_to_keep(vit: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    with pytest.raises(PlanError) as caught:
        dopkit.run(make_recipe(vit, ["e0", "e1"], "karcher"), tmp_path / "out", Options(keep_state=True))
    assert [problem.remedy for problem in caught.value.problems] == ["Leave out --keep-state."]


@pytest.mark.parametrize(
    ("method", "parameters"),
    [("linear", {"weight": 0.6}), ("task_arithmetic", {"normalize": True, "weight": 0.6}),
     ("dare_linear", {"density": 0.7}), ("della_linear", {"density": 0.7, "normalize": True})],
)  # fmt: skip
def test_sums_grow_from_the_merged_weights(
    vit: Path, tmp_path: Path, make_recipe: MakeRecipe, method: str, parameters: dict[str, object]
) -> None:
    """Within rounding: what the earlier models weigh stands in the recipe, and draws are those of the whole merge."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    dopkit.run(make_recipe(vit, ["e0", "e1"], method, parameters=parameters), out)
    adding.add(out, [str(vit / "e2")], parameters={"weight": 0.9})
    recipe = make_recipe(vit, ["e0", "e1", "e2"], method, parameters=parameters)
    entries = (*recipe.models[:2], recipe.models[2].model_copy(update={"parameters": {"weight": 0.9}}))
    dopkit.run(recipe.model_copy(update={"models": entries}), whole)
    base, grown, want = tiny.read(vit / "base"), tiny.read(out), tiny.read(whole)
    for name in base:
        assert float((grown[name] - want[name]).norm()) < 1e-4 * float((want[name] - base[name]).norm()), name


@pytest.mark.parametrize("method", ["ties", "multislerp", "model_stock", "iso_c", "ram", "breadcrumbs_ties"])
def test_a_kept_state_grows_to_the_bit(llama: Path, tmp_path: Path, make_recipe: MakeRecipe, method: str) -> None:
    parameters = {"multislerp": {"weight": 0.5}, "model_stock": {"filter_wise": True}}.get(method, {})
    dopkit.run(make_recipe(llama, ["e0", "e1"], method, parameters=parameters), tmp_path / "two",
               Options(keep_state=True))  # fmt: skip
    adding.add(tmp_path / "two", [str(llama / "e2")], tmp_path / "three")
    dopkit.run(make_recipe(llama, ["e0", "e1", "e2"], method, parameters=parameters), tmp_path / "whole")
    assert tiny.same(tiny.read(tmp_path / "three"), tiny.read(tmp_path / "whole"))


def test_draws_do_not_know_blocks(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    """A tensor of four blocks: what is kept in each is what one draw over the whole tensor keeps."""
    rows = 3 * BLOCK_ELEMENTS // 1000 + 7
    for name, value in (("base", 0.0), ("a", 1.0)):
        (tmp_path / name).mkdir()
        save_file({"x.weight": torch.full((rows, 1000), value)}, tmp_path / name / "model.safetensors")
    recipe = make_recipe(tmp_path, ["a"], "dare_linear", parameters={"density": 0.5}, seed=3)
    result = dopkit.run(recipe, tmp_path / "out")
    assert len(list(result.plan.jobs[0].parts())) == 4
    from dopkit.methods.draws import uniform
    from dopkit.methods.fold import Context

    context = Context(recipe.parameters, Role.LINEAR, 1, seed=3, tensor="x.weight", model="a")
    want = 2.0 * (uniform(context, (rows, 1000)) < 0.5)
    assert torch.equal(tiny.read(tmp_path / "out")["x.weight"], want)


def test_a_seed_is_part_of_the_recipe(vit: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    """Equal seeds give equal bytes, no seed is seed 0, another one another model; the result's recipe has it."""

    def merged(name: str, models: list[str], **keys: object) -> tiny.Tensors:
        parameters = {"density": 0.5}
        dopkit.run(make_recipe(vit, models, "dare_ties", parameters=parameters, **keys), tmp_path / name)
        return tiny.read(tmp_path / name)

    first = merged("first", ["e0", "e1"], seed=7)
    assert tiny.same(first, merged("again", ["e0", "e1"], seed=7))
    assert not tiny.same(first, merged("other", ["e0", "e1"], seed=8))
    assert tiny.same(merged("none", ["e0", "e1"]), merged("zero", ["e0", "e1"], seed=0))
    kept = dopkit.load_recipe(tmp_path / "first" / "dopkit_recipe.yaml")
    assert kept.seed == 7
    turned = merged("turned", ["e1", "e0"], seed=7)  # a model draws the same wherever it stands
    assert all(torch.allclose(turned[name], first[name], atol=1e-6) for name in first)
    shuffled = make_recipe(vit, ["e0", "e1"], "dare_ties", order="shuffle", seed=7)
    assert shuffled.drawn().seed == 7


def test_two_models_of_one_name_draw_differently(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    save = {"base": 0.0, "one/final": 1.0, "two/final": 1.0}
    for name, value in save.items():
        (tmp_path / name).mkdir(parents=True)
        tensor = torch.full((40, 50), value)
        tensor[0, 0] += len(name)  # not the same model
        save_file({"x.weight": tensor}, tmp_path / name / "model.safetensors")
    recipe = make_recipe(tmp_path, ["one/final", "two/final"], "dare_linear", parameters={"density": 0.5})
    dopkit.run(recipe, tmp_path / "out")
    values = tiny.read(tmp_path / "out")["x.weight"].flatten()[1:]
    assert set(values.tolist()) == {0, 2, 4}  # kept in neither, in one, in both


def test_a_base_is_used_where_there_is_one(vit: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    """nuslerp and multislerp: between task vectors with a base, between models without."""
    for method in ("nuslerp", "multislerp"):
        given = {"parameters": {"weight": 1.0}}
        plan = dopkit.plan(make_recipe(vit, ["e0", "e1"], method, **given))
        assert all(one.base is not None for one in plan.jobs)
        plan = dopkit.plan(make_recipe(vit, ["e0", "e1"], method, base=None, **given))
        assert all(one.base is None for one in plan.jobs)
