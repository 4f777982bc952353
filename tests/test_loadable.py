"""Whether a result will load is asked with the plan, of transformers' own loader."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from hubserver import TestHub, connect
from test_heads import make_models

import dopkit
from dopkit import sources
from dopkit.errors import PlanError

MakeRecipe = Callable[..., dopkit.Recipe]


def changing_plans(monkeypatch: pytest.MonkeyPatch, change: Callable[[dopkit.Plan], dopkit.Plan]) -> None:
    """A planner that makes a mistake."""
    build = sources.build
    monkeypatch.setattr(sources, "build", lambda *arguments, **named: change(build(*arguments, **named)))


def test_what_would_not_load_is_refused_before_the_download(
    vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = "layers.0.mlp.fc1.weight"
    changing_plans(
        monkeypatch, lambda plan: replace(plan, jobs=tuple(job for job in plan.jobs if job.canonical != left))
    )
    recipe = dopkit.parse_recipe("base_model: org/base\nmerge_method: average\nmodels: [org/e0]\n")
    with TestHub() as hub:
        connect(monkeypatch, hub, tmp_path / "cache")
        for name in ("base", "e0"):
            hub.create_repo(f"org/{name}", {})
            hub.add_folder(f"org/{name}", vit / name)
        for verb in (dopkit.plan, dopkit.run):
            with pytest.raises(PlanError, match=f"the result would not load as ViTModel\n  {left}: is missing"):
                verb(recipe, tmp_path / "out")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    assert not list(tmp_path.glob("out*"))


def test_so_is_a_head_that_would_not(tmp_path: Path, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_a_bias(plan: dopkit.Plan) -> dopkit.Plan:
        first, *others = plan.heads
        kept = tuple(tensor for tensor in first.tensors if tensor.name != "classifier.bias")
        return replace(plan, heads=(replace(first, tensors=kept), *others))

    recipe = make_recipe(make_models(tmp_path), ["e0", "e1"], heads="per-task")
    assert len(dopkit.plan(recipe).heads) == 2
    changing_plans(monkeypatch, without_a_bias)
    with pytest.raises(PlanError, match="the heads would not load on the merged backbone") as caught:
        dopkit.plan(recipe)
    assert [problem.place for problem in caught.value.problems] == ["heads/e0.safetensors: classifier.bias"]


def test_what_the_base_lacks_too_is_told_not_refused(vit: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    result = dopkit.run(make_recipe(vit, ["e0"]), tmp_path / "out")  # ViT backbones without the pooler of ViTModel
    assert result.receipt["verified"]["loads"] == (
        "loads as ViTModel with no missing or unexpected key, but for those that the base lacks too "
        "or that were left out: pooler.dense.bias, pooler.dense.weight"
    )


def test_custom_code_is_not_run_and_not_claimed(vit: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    for name in ("base", "e0"):
        folder = tiny.edit(vit / name, tmp_path / name, dict)
        tiny.set_config(
            folder, model_type="own", architectures=["OwnModel"], auto_map={"AutoModel": "modeling.OwnModel"}
        )
        (folder / "modeling.py").write_text("raise SystemExit('never run')")
    result = dopkit.run(make_recipe(tmp_path, ["e0"]), tmp_path / "out")
    assert result.receipt["verified"]["loads"].startswith("loading was not checked: ")
    assert (tmp_path / "out" / "modeling.py").exists()
