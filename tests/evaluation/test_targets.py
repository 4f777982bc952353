"""What is scored: steps, the merge, its sources."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny

from dopkit.errors import EvaluationError
from dopkit.evaluation.targets import Target, model_names, targets, weights_digest


def test_the_steps_of_a_merge(made: Path) -> None:
    merged = made / "merged"
    found = targets(merged)
    assert [(one.label, one.kind, one.step, one.model, one.seen) for one in found] == [
        ("step 1", "step", 1, "three", ("three",)),
        ("step 2", "step", 2, "five", ("three", "five")),
    ]
    assert [one.backbone for one in found] == [merged / "steps" / "01", merged]
    assert {one.heads for one in found} == {merged}
    assert found[0].base is not None and found[0].base.folder == made / "base"


def test_steps_that_were_not_kept(root: Path) -> None:
    shutil.rmtree(root / "merged/steps")
    (only,) = targets(root / "merged")
    assert (only.label, only.step, only.seen) == ("step 2", 2, ("three", "five"))


def test_the_sources_around_them(made: Path) -> None:
    found = targets(made / "merged", sources=True)
    assert [(one.label, one.kind, one.step, one.model, one.seen) for one in found[:1] + found[3:]] == [
        ("base", "base", 0, None, None),
        ("expert three", "expert", None, "three", ("three",)),
        ("expert five", "expert", None, "five", ("five",)),
    ]
    assert [one.backbone for one in found[:1] + found[3:]] == [made / "base", made / "three", made / "five"]


def test_folders_that_a_strangers_recipe_names_are_not_looked_at(made: Path) -> None:
    assert {one.base for one in targets(made / "merged", foreign=True)} == {None}
    with pytest.raises(EvaluationError, match="its recipe does not name them all"):
        targets(made / "merged", sources=True, foreign=True)


def test_an_adapter_is_not_scored_as_its_base(root: Path) -> None:
    path = root / "merged/dopkit_recipe.yaml"
    text = path.read_text()
    assert "- ../three\n" in text
    path.write_text(text.replace("- ../three\n", "- {model: ../base, adapter: ../three}\n"))
    assert len(targets(root / "merged")) == 2
    with pytest.raises(EvaluationError, match="leave out --sources") as caught:
        targets(root / "merged", sources=True)
    (problem,) = caught.value.problems
    assert problem.place.endswith("three") and "is an adapter" in problem.what


def test_a_plain_model(made: Path) -> None:
    assert targets(made / "three") == (Target("three", "model", made / "three", made / "three"),)
    with pytest.raises(EvaluationError, match="its sources are not known"):
        targets(made / "three", sources=True)


def test_a_model_is_called_as_its_head_is(root: Path) -> None:
    path = root / "merged/dopkit_receipt.json"
    receipt = json.loads(path.read_text())
    receipt["heads"][0]["name"] = "another"
    path.write_text(json.dumps(receipt))
    assert model_names(root / "merged") == ("another", "five")
    path.write_text(json.dumps({**receipt, "heads": []}))
    assert model_names(root / "merged") == ("three", "five")


def test_the_digest_of_a_model(root: Path, tmp_path: Path) -> None:
    """It tells weights and what prepares inputs, and nothing else."""
    before = weights_digest(root / "three")
    (root / "three/README.md").write_text("# changed")
    assert weights_digest(root / "three") == before
    assert weights_digest(tiny.make_expert(root / "three", tmp_path / "noisy", seed=1)) != before
    (root / "three/preprocessor_config.json").write_text("{}")
    assert weights_digest(root / "three") != before
