"""The plan: every tensor accounted for, parts that cover each one once, a fingerprint that knows what matters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tiny

import dopkit
from dopkit import methods
from dopkit.planning import BLOCK_ELEMENTS, TensorJob
from dopkit.roles import Role

MakeRecipe = Callable[..., dopkit.Recipe]


def job(shape: tuple[int, ...], rule: methods.Rule = methods.MEAN) -> TensorJob:
    return TensorJob("w", "w", Role.LINEAR, rule, "F32", shape, ("w",), None, "w")


@pytest.mark.parametrize(
    ("shape", "rule", "parts"),
    [
        ((), methods.MEAN, [(0, 1)]),
        ((0, 4), methods.MEAN, []),
        ((0, 4), methods.DOP_EXACT, []),
        ((0, 4), replace(methods.MEAN, cut=methods.Cut.WHOLE), []),
        ((4, 0), methods.DOP_EXACT, []),
        ((10, 3), methods.MEAN, [(0, 10)]),
        ((10, BLOCK_ELEMENTS // 4), methods.MEAN, [(0, 4), (4, 8), (8, 10)]),
        ((2, 3 * BLOCK_ELEMENTS), methods.MEAN, [(0, 1), (1, 2)]),  # a row is never cut
        ((10, BLOCK_ELEMENTS), methods.DOP_EXACT, [(0, 10)]),  # a matrix is never cut
        ((3, 5, 7), methods.DOP_EXACT, [(0, 1), (1, 2), (2, 3)]),  # fused experts, one by one
    ],
)
def test_parts_cover_a_tensor_once(shape: tuple[int, ...], rule: methods.Rule, parts: list[tuple[int, int]]) -> None:
    assert list(job(shape, rule).parts()) == parts


def test_working_memory_of_an_elementwise_rule_does_not_grow_with_the_tensor() -> None:
    small, large = job((1000, 1 << 20)), job((100_000, 1 << 20))
    assert small.working_bytes == large.working_bytes == 4 * 4 * BLOCK_ELEMENTS


def test_float64_needs_twice_the_memory() -> None:
    single, double = (
        TensorJob("w", "w", Role.LINEAR, methods.DOP_EXACT, dtype, (8, 9), ("w",), None, "w")
        for dtype in ("F32", "F64")
    )
    assert double.working_bytes == 2 * single.working_bytes


def test_every_tensor_of_every_model_is_accounted_for(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    """Merged, copied or left out with a reason: nothing is forgotten."""
    base = tiny.make_vit(tmp_path / "base", labels=3)
    tiny.make_expert(base, tmp_path / "e0", 1)
    tiny.make_vit(tmp_path / "e1", labels=5)
    plan = dopkit.plan(make_recipe(tmp_path, ["e0", "e1"], heads="drop", copy=["embeddings.*"]))
    for index, name in enumerate(("base", "e0", "e1")):
        held = set(tiny.read(tmp_path / name))
        read = (
            {job.base or job.name for job in plan.jobs}
            if name == "base"
            else {job.inputs[index - 1].name for job in plan.jobs if job.inputs}
        )
        left = {one.name for one in plan.dropped if one.ref.folder == tmp_path / name}
        assert read | left == held and not read & left, name
    assert {one.why for one in plan.dropped} == {"heads: drop", "copy"}


def test_roles_and_rules(vit: Path, make_recipe: MakeRecipe) -> None:
    plan = dopkit.plan(make_recipe(vit, ["e0", "e1"], parameters={"exclude": ["layers.0.mlp.*"], "other": "half"}))
    rules = {(str(job.role), job.rule.name) for job in plan.jobs}
    assert rules == {
        ("linear", "dop exact"), ("linear", "half"), ("bias", "half"), ("norm", "half"), ("conv", "half"),
        ("parameter", "half"),
    }  # fmt: skip
    excluded = {job.canonical for job in plan.jobs if job.role is Role.LINEAR and job.rule.name == "half"}
    assert excluded == {"layers.0.mlp.fc1.weight", "layers.0.mlp.fc2.weight"}


def test_models_are_matched_across_spellings_and_classes(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    """A bare backbone as base, classifiers as experts: transformers' names differ, the parameters do not."""
    base = tiny.make_vit(tmp_path / "base")
    headed = tiny.make_vit(tmp_path / "headed", labels=4)
    assert set(tiny.read(base)) & set(tiny.read(headed)) == set()
    tiny.make_expert(headed, tmp_path / "e0", 1)
    tiny.make_expert(headed, tmp_path / "e1", 2)
    plan = dopkit.plan(make_recipe(tmp_path, ["e0", "e1"], heads="drop"))
    assert [job.name for job in plan.jobs] == [tensor.name for shard in plan.shards for tensor in shard.tensors]
    assert {job.name for job in plan.jobs} == set(tiny.read(base))
    assert all(name in tiny.read(headed) for job in plan.jobs for name in [one.name for one in job.inputs])


def test_output_dtype(llama: Path, make_recipe: MakeRecipe) -> None:
    assert {job.dtype for job in dopkit.plan(make_recipe(llama, ["e0"])).jobs} == {"BF16"}
    assert {job.dtype for job in dopkit.plan(make_recipe(llama, ["e0"], dtype="float32")).jobs} == {"F32"}
    both = dopkit.plan(make_recipe(llama, ["e0"], dtype="float16", out_dtype="bfloat16"))
    assert {job.dtype for job in both.jobs} == {"BF16"}
    assert both.notes == ("arithmetic is in float32; `dtype: float16` gives way to `out_dtype`",)


def test_shuffled_order_is_drawn_and_kept(llama: Path, make_recipe: MakeRecipe) -> None:
    models = ["e0", "e1", "e2", "e3"]
    plan = dopkit.plan(make_recipe(llama, models, order="shuffle", seed=4))
    again = dopkit.plan(make_recipe(llama, models, order="shuffle", seed=4))
    drawn = [source.ref.folder.name for source in plan.models if source.ref.folder]
    assert sorted(drawn) == models and drawn != models
    assert plan.models == again.models
    assert plan.seed == 4 and plan.recipe.order == "given"


def test_the_fingerprint_knows_what_changes_bytes(llama: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    def fingerprint(models: list[str], engine: str = "cpu", size: int = 5000, **keys: object) -> str:
        recipe = make_recipe(llama, models, **keys)
        return dopkit.plan(recipe, tmp_path / "out", dopkit.Options(max_shard_size=size)).fingerprint(engine)

    usual = fingerprint(["e0", "e1"])
    assert fingerprint(["e0", "e1"], parameters={"alpha": 0.8}) == usual  # the default, spelt out
    others = {
        fingerprint(["e1", "e0"]),
        fingerprint(["e0", "e2"]),
        fingerprint(["e0", "e1"], engine="cuda"),
        fingerprint(["e0", "e1"], size=9000),
        fingerprint(["e0", "e1"], parameters={"alpha": 0.7}),
        fingerprint(["e0", "e1"], method="average"),
        fingerprint(["e0", "e1"], dtype="float32"),
        fingerprint(["e0", "e1"], copy=["norm.weight"]),
    }
    assert len(others) == 8 and usual not in others


def test_a_class_that_cannot_be_built_is_told(tmp_path: Path, vit: Path, make_recipe: MakeRecipe) -> None:
    for name in ("base", "e0"):
        tiny.edit(vit / name, tmp_path / name, dict)
        made_up = {"model_type": "made-up", "architectures": ["MadeUpModel"], "auto_map": {"AutoModel": "x.y"}}
        tiny.set_config(tmp_path / name, **made_up)
    plan = dopkit.plan(make_recipe(tmp_path, ["e0"]))
    assert len(plan.notes) == 2
    assert plan.notes[0].startswith("./base: roles are guessed from names (")
    assert ("linear", "dop exact") in {(str(job.role), job.rule.name) for job in plan.jobs}


def test_one_config_that_cannot_be_read_does_not_part_the_models(
    tmp_path: Path, vit: Path, make_recipe: MakeRecipe
) -> None:
    """Names are compared in one way: by the base's class, or for all by the names on disk."""
    for broken in ("e0", "base"):
        for name in ("base", "e0", "e1"):
            tiny.edit(vit / name, tmp_path / broken / name, dict)
        tiny.set_config(tmp_path / broken / broken, model_type="made-up", architectures=["MadeUpModel"])
        plan = dopkit.plan(make_recipe(tmp_path / broken, ["e0", "e1"]))
        assert len(plan.jobs) == len(tiny.read(vit / "base"))
