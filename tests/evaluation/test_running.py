"""A merge scored as a whole: which tasks at which step, what is kept, what is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import scored
from hubserver import TestHub, connect

from dopkit.errors import EvaluationError, PlanError
from dopkit.evaluation import evaluate_model
from dopkit.evaluation.running import evaluate
from dopkit.evaluation.scoring import Scorer
from dopkit.evaluation.targets import Target, targets
from dopkit.evaluation.tasks import Task, load_tasks, parse_tasks
from dopkit.progress import Progress
from dopkit.writer import EVALUATION


class Noting(Progress):
    """Remembers what was scored and noted."""

    def __init__(self) -> None:
        self.scored_on: list[str] = []
        self.notes: list[str] = []

    def begin_scoring(self, what: str, samples: int) -> None:
        self.scored_on.append(what)

    def note(self, text: str) -> None:
        self.notes.append(text)


def run(root: Path, tasks: Sequence[Task] | None = None, **how: Any) -> tuple[dict[str, Any], Noting]:
    progress = Noting()
    asked = load_tasks(root / "tasks.yaml") if tasks is None else tasks
    given = how.pop("targets", None) or targets(root / "merged")
    return evaluate(given, asked, "cpu", progress, root / "store.json", **how), progress


def test_each_step_is_scored_on_the_tasks_seen_so_far(root: Path) -> None:
    found, progress = run(root)
    assert progress.scored_on == ["step 1: three", "step 2: three", "step 2: five"]
    assert [(task["name"], task["model"], task["samples"]) for task in found["tasks"]] == [
        ("three", "three", 20), ("five", "five", 20)
    ]  # fmt: skip
    assert [list(row["scores"]) for row in found["rows"]] == [["three"], ["three", "five"]]
    first, last = found["rows"]
    final = {name: score["value"] for name, score in last["scores"].items()}
    assert found["acc"] == pytest.approx((final["three"] + final["five"]) / 2)
    assert found["bwt"] == pytest.approx(final["three"] - first["scores"]["three"]["value"])
    assert set(found["definitions"]) == {"acc", "bwt"}
    assert (found["layout"], found["device"]) == (1, "cpu")
    assert json.loads((root / "store.json").read_text()) == found


def test_sources_frame_the_steps(root: Path) -> None:
    """An expert's backbone under its kept head scores what the expert itself does."""
    found, _ = run(root, targets=targets(root / "merged", sources=True))
    rows = {row["label"]: row for row in found["rows"]}
    assert list(rows) == ["base", "step 1", "step 2", "expert three", "expert five"]
    assert list(rows["base"]["scores"]) == ["three", "five"]
    (own,) = evaluate(targets(root / "five"), load_tasks(root / "tasks.yaml")[1:], "cpu")["rows"]
    assert rows["expert five"]["scores"]["five"]["value"] == own["scores"]["five"]["value"]
    assert found["bwt"] is not None


def test_a_model_that_is_replaced_while_it_is_scored(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its scores would be kept as those of the model that stood there before."""
    score, weights = Scorer.score, root / "merged/model.safetensors"

    def meanwhile(self: Scorer, samples: Any, target: Target, reading: Any) -> dict[str, Any]:
        if target.label == "step 2":
            weights.unlink()
            weights.write_bytes((root / "base/model.safetensors").read_bytes())
        return score(self, samples, target, reading)

    monkeypatch.setattr(Scorer, "score", meanwhile)
    with pytest.raises(EvaluationError, match="has changed while it was scored") as caught:
        run(root)
    assert [problem.place for problem in caught.value.problems] == ["step 2"]
    kept = json.loads((root / "store.json").read_text())
    assert [list(row["scores"]) for row in kept["rows"]] == [["three"], []]


def test_sources_are_left_out_once_nothing_is_known_of_them(root: Path) -> None:
    """Scored before, on the same tasks, they stay; on other tasks there would be rows without a score."""
    tasks = load_tasks(root / "tasks.yaml")
    run(root, targets=targets(root / "merged", sources=True))
    labels = [row["label"] for row in run(root)[0]["rows"]]
    assert labels == ["base", "step 1", "step 2", "expert three", "expert five"]
    found, _ = run(root, [replace(task, limit=5) for task in tasks])
    assert [row["label"] for row in found["rows"]] == ["step 1", "step 2"]


# Going on


def test_what_was_scored_is_not_scored_again(root: Path) -> None:
    first, _ = run(root)
    again, progress = run(root)
    assert progress.scored_on == []
    assert again == first


def test_after_a_kill_the_next_run_goes_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = run(root)
    (root / "store.json").unlink()
    score, calls = Scorer.score, []

    def killed(self: Scorer, *given: Any) -> dict[str, Any]:
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return score(self, *given)

    monkeypatch.setattr(Scorer, "score", killed)
    with pytest.raises(KeyboardInterrupt):
        run(root)
    half = json.loads((root / "store.json").read_text())
    assert [list(row["scores"]) for row in half["rows"]] == [["three"], ["three"]]
    assert half["acc"] is None
    monkeypatch.undo()
    finished, progress = run(root)
    assert progress.scored_on == ["step 2: five"]
    assert (finished["acc"], finished["bwt"]) == (whole["acc"], whole["bwt"])


def test_a_change_is_scored_again(root: Path) -> None:
    """Of the settings, the data, the head, or the weights: only what depends on it."""
    run(root)
    tasks = load_tasks(root / "tasks.yaml")
    _, limited = run(root, [replace(tasks[0], limit=5), tasks[1]])
    assert limited.scored_on == ["step 1: three", "step 2: three"]
    run(root)
    scored.keep_head(scored.make_classifier(root / "other", list("abcde"), 9), root / "merged", "five")
    _, head = run(root)
    assert head.scored_on == ["step 2: five"]
    step = root / "merged/steps/01"
    (step / "model.safetensors").write_bytes((root / "base/model.safetensors").read_bytes())
    _, weights = run(root)
    assert weights.scored_on == ["step 1: three"]
    import numpy as np

    with np.load(root / "data.npz") as arrays:
        changed = {**arrays, "images": arrays["images"][::-1]}
    np.savez(root / "data.npz", **changed)
    _, data = run(root)
    assert data.scored_on == ["step 1: three", "step 2: three", "step 2: five"]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"layout": 9, "tasks": [], "rows": []}', '{"tasks": 3}'])
def test_a_store_that_cannot_be_read_is_no_store(root: Path, text: str) -> None:
    (root / "store.json").write_text(text)
    found, progress = run(root)
    assert len(progress.scored_on) == 3
    assert json.loads((root / "store.json").read_text()) == found


# Which tasks


def models_of(root: Path, *tasks: str) -> list[str | None]:
    text = "\n".join(f"  - {{kind: image-classification, data: data.npz, {task}}}" for task in tasks)
    found, _ = run(root, parse_tasks(f"tasks:\n{text}", root))
    return [task["model"] for task in found["tasks"]]


def test_the_model_of_a_task(root: Path) -> None:
    assert models_of(
        root,
        "name: three, label: three",
        "name: other, label: three, head: three",
        "name: said, label: three, head: three, model: five",
        "name: repository, label: three, head: three, model: user/five",
    ) == ["three", "three", "five", "five"]


def test_a_task_of_a_model_that_is_not_merged_is_left_out_and_said_so(root: Path) -> None:
    more = load_tasks(root / "tasks.yaml") + parse_tasks(
        "tasks: [{name: later, kind: image-classification, data: data.npz, label: five, model: seven}]", root
    )
    found, progress = run(root, more)
    assert [task["name"] for task in found["tasks"]] == ["three", "five"]
    assert progress.notes == ["note: later is left out: its model seven is not merged here (three, five)"]
    assert found["acc"] is not None
    with pytest.raises(EvaluationError, match="there is nothing to score"):
        run(root, more[2:])


def test_a_plain_model_is_scored_on_every_task(root: Path) -> None:
    tasks = (replace(load_tasks(root / "tasks.yaml")[0], model="anything"),)
    found = evaluate(targets(root / "three"), tasks, "cpu")
    assert (found["rows"][0]["kind"], found["rows"][0]["label"], found["bwt"]) == ("model", "three", None)
    assert found["acc"] == found["rows"][0]["scores"]["three"]["value"]


# Refusals


def test_all_problems_before_a_model_is_loaded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dopkit.loading.load", None)
    text = """
tasks:
  - {name: gone, kind: image-classification, data: gone.npz, head: three}
  - {name: unknown, kind: image-classification, data: data.npz, label: five, head: seven}
  - {name: few, kind: image-classification, data: data.npz, label: five, head: three}
  - {name: unnamed, kind: image-classification, data: data.npz}
"""
    with pytest.raises(EvaluationError) as caught:
        run(root, parse_tasks(text, root))
    assert str(caught.value).splitlines() == [
        "cannot evaluate: 5 problems",
        f"  gone: there is no file or folder {root}/gone.npz",
        "  unknown: step 1 cannot be read: there is no head 'seven'",
        "    Kept heads: five, three.",
        "  few: the label 3 is outside of what the head 'three' tells apart: 0 to 2",
        "  unnamed: data.npz holds no 'labels' or 'label'; it holds images, three, five",
        "    Name the column with `label:`.",
        "  unnamed: step 1 cannot be read: it is ViTModel, which has no classifier of its own",
        "    Name a `head`. Kept heads: five, three.",
    ]


def test_a_device_that_is_not_there(root: Path) -> None:
    with pytest.raises(PlanError, match="there is no device cuda:7 here"):
        evaluate(targets(root / "merged"), load_tasks(root / "tasks.yaml"), "cuda:7")


def test_targets_of_ones_own(root: Path) -> None:
    """A benchmark may score any backbone under any kept heads."""
    one = Target("mean", "model", root / "base", root / "merged")
    found = evaluate([one], load_tasks(root / "tasks.yaml"), "cpu")
    assert list(found["rows"][0]["scores"]) == ["three", "five"]


# The whole, from a path


def test_a_folder_keeps_its_results(root: Path) -> None:
    found = evaluate_model(root / "merged", root / "tasks.yaml", "cpu", limit=8)
    assert [task["samples"] for task in found["tasks"]] == [8, 8]
    assert json.loads((root / "merged" / EVALUATION).read_text()) == found
    assert json.loads((root / "merged/dopkit_receipt.json").read_text())["evaluation"] == found


def test_a_folder_that_is_read_only_is_scored_and_not_written_to(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """(Whoever runs the tests may be allowed everything.)"""
    before, access, progress = sorted(root.rglob("*")), os.access, Noting()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != root / "merged" and access(path, mode))
    found = evaluate_model(root / "merged", root / "tasks.yaml", "cpu", sources=True, progress=progress)
    assert found["acc"] is not None and sorted(root.rglob("*")) == before
    assert progress.notes == [
        f"{root / 'merged'} cannot be written to: the scores are told, and not kept beside the model"
    ]


def test_a_repository_is_scored_and_not_written_to(made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    merged = made / "merged"
    files = {path.relative_to(merged).as_posix(): path.read_bytes() for path in merged.rglob("*") if path.is_file()}
    with TestHub() as server:
        connect(monkeypatch, server, tmp_path / "cache")
        server.create_repo("user/merged", files)
        found = evaluate_model("user/merged", made / "tasks.yaml", "cpu")
        assert server.crashes == []
    assert [row["label"] for row in found["rows"]] == ["step 2"]
    assert found["acc"] is not None and found["bwt"] is None
    assert not list((tmp_path / "cache").rglob(EVALUATION))
