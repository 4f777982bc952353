"""A merge scored as it is made: every step, the base and the experts; the report; and what stops it beforehand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from hubserver import CLIENT_WARNING, TestHub, connect

import dopkit
from dopkit import adding, report
from dopkit.errors import EvaluationError, PlanError, RecipeError
from dopkit.preparing import Options
from dopkit.publishing import PushOptions

MakeRecipe = Callable[..., dopkit.Recipe]


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """``base`` and three classifiers ``a``, ``b``, ``c`` on its backbone, and ``tasks.yaml`` with their tasks."""
    base = tiny.make_vit(tmp_path / "base")
    size = {"height": 8, "width": 8}
    processor = {"image_processor_type": "ViTImageProcessor", "size": size, "do_resize": True, "do_normalize": False}
    (base / "preprocessor_config.json").write_text(json.dumps(processor))
    generator = np.random.default_rng(0)
    tasks, arrays = [], {}
    for number, name in enumerate("abc"):
        folder = tiny.make_vit(tmp_path / name, labels=number + 2)
        backbone = tiny.read(tiny.make_expert(base, tmp_path / f"{name}-backbone", seed=number))

        def trained(tensors: tiny.Tensors, own: tiny.Tensors = backbone) -> tiny.Tensors:
            return tensors | {f"vit.{key}": tensor for key, tensor in own.items()}

        tiny.edit(folder, tmp_path / f"{name}-new", trained)
        shutil.rmtree(folder)
        (tmp_path / f"{name}-new").rename(folder)
        arrays[f"{name}.images"] = generator.integers(0, 255, (12, 8, 8), dtype=np.uint8)
        arrays[f"{name}.labels"] = generator.integers(0, number + 2, 12)
        columns = f"image: {name}.images, label: {name}.labels"
        tasks.append(f"  - {{name: {name}, kind: image-classification, data: ./data.npz, {columns}, model: {name}}}")
    np.savez(tmp_path / "data.npz", **arrays)
    (tmp_path / "tasks.yaml").write_text("tasks:\n" + "\n".join(tasks) + "\n")
    return tmp_path


def test_a_run_with_tasks(suite: Path, make_recipe: MakeRecipe) -> None:
    """Every step is scored on the tasks seen so far; the numbers are in the receipt, the card and the report."""
    recipe = make_recipe(suite, ["a", "b"], heads="per-task")
    result = dopkit.run(recipe, suite / "out", Options(tasks=suite / "tasks.yaml"))
    assert result.assessment is not None
    rows = {row["label"]: row["scores"] for row in result.assessment.evaluation["rows"]}
    assert {label: sorted(scores) for label, scores in rows.items()} == {
        "base": ["a", "b"], "step 1": ["a"], "step 2": ["a", "b"], "expert a": ["a"], "expert b": ["b"],
    }  # fmt: skip
    assert rows["step 1"]["a"]["value"] == rows["expert a"]["a"]["value"]  # the first model is taken as it is
    last = [rows["step 2"][name]["value"] for name in "ab"]
    assert result.assessment.evaluation["acc"] == pytest.approx(sum(last) / 2)
    assert result.assessment.evaluation["bwt"] == pytest.approx(last[0] - rows["step 1"]["a"]["value"])
    assert result.receipt["evaluation"] == result.assessment.evaluation
    assert result.receipt["relations"]["models"] == ["a", "b"]
    assert "BWT" in (suite / "out" / "README.md").read_text()
    page = (suite / "out" / "report.html").read_text()
    assert result.assessment.report == suite / "out" / "report.html" and "expert b" in page or "b" in page


def test_the_same_command_scores_nothing_twice(
    suite: Path, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, options = make_recipe(suite, ["a", "b"], heads="per-task"), Options(tasks=suite / "tasks.yaml")
    first = dopkit.run(recipe, suite / "out", options)
    monkeypatch.setattr("dopkit.evaluation.scoring.Scorer.score", None)  # calling it would raise
    again = dopkit.run(recipe, suite / "out", options)
    assert again.already_there
    assert again.receipt["evaluation"] == first.receipt["evaluation"]


def test_growing_scores_go_on(suite: Path, make_recipe: MakeRecipe) -> None:
    """After `add` the earlier steps' scores are still there, and so are those of experts that are gone."""
    options = Options(tasks=suite / "tasks.yaml")
    grown = dopkit.run(make_recipe(suite, ["a", "b"], heads="per-task"), suite / "grown", options)
    before = {row["label"]: row["scores"] for row in grown.receipt["evaluation"]["rows"]}
    shutil.rmtree(suite / "a")
    result = adding.add(grown.folder, [str(suite / "c")], options=options)
    rows = {row["label"]: row["scores"] for row in result.receipt["evaluation"]["rows"]}
    assert sorted(rows) == ["base", "expert a", "expert b", "step 1", "step 2", "step 3"]
    assert all(rows[label] == before[label] for label in ("step 1", "step 2", "expert a", "expert b"))
    assert sorted(rows["step 3"]) == ["a", "b", "c"]
    model = dopkit.load(grown.folder, head="c")
    assert model.config.num_labels == 4 and not model.training
    assert bool(torch.isfinite(model(torch.zeros(1, 3, 8, 8)).logits).all())


def test_scores_of_an_earlier_model_are_not_those_of_a_grown_one(suite: Path, make_recipe: MakeRecipe) -> None:
    """Added without tasks: what was measured stays, but nothing says that it sums up the new model."""
    options = Options(tasks=suite / "tasks.yaml")
    grown = dopkit.run(make_recipe(suite, ["a", "b"], heads="per-task"), suite / "grown", options).folder
    before = json.loads((grown / "dopkit_evaluation.json").read_text())
    assert "Mean accuracy over 2 tasks is" in report.write(grown).read_text()
    adding.add(grown, [str(suite / "c")])
    after = json.loads((grown / "dopkit_evaluation.json").read_text())
    assert before["acc"] is not None and before["bwt"] is not None
    assert after == {**before, "acc": None, "bwt": None}
    page = report.write(grown).read_text()
    assert "3 models merged" in page and "Mean accuracy over" not in page and "step 2" in page


@pytest.mark.filterwarnings(CLIENT_WARNING)
def test_tasks_are_looked_at_before_anything_is_merged(
    suite: Path, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(suite, ["a", "b"], heads="per-task")
    wrong = suite / "wrong.yaml"
    wrong.write_text("tasks:\n  - {name: a, kind: image-classificatoin, data: ./data.npz}\n")
    with pytest.raises(RecipeError, match="line 2"):
        dopkit.run(recipe, suite / "out", Options(tasks=wrong))
    wrong.write_text("tasks:\n  - {name: a, kind: image-classification, data: ./nothing.npz}\n")
    with pytest.raises(EvaluationError, match="nothing.npz"):
        dopkit.run(recipe, suite / "out", Options(tasks=wrong))
    options = Options(tasks=suite / "tasks.yaml", stream=True, push=PushOptions("ann/merged", allow_local_sources=True))
    with TestHub() as hub:
        connect(monkeypatch, hub, suite / "cache", token=hub.token("ann"))
        with pytest.raises(PlanError, match="scoring needs the weights"):
            dopkit.run(recipe, suite / "out", options)
    assert not (suite / "out").exists() and not (suite / "out.partial").exists()
