"""Every task on every model it belongs to: checked as a whole, then scored one by one, each result kept at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dopkit import device as devices
from dopkit import receipt
from dopkit.errors import EvaluationError, Problem
from dopkit.evaluation import results
from dopkit.evaluation.checking import Checked
from dopkit.evaluation.results import Evaluation
from dopkit.evaluation.scoring import Scorer
from dopkit.evaluation.targets import Target, weights_digest, weights_stamp
from dopkit.evaluation.tasks import Task
from dopkit.progress import Progress


def evaluate(
    targets: Sequence[Target],
    tasks: Sequence[Task],
    device: str = "auto",
    progress: Progress | None = None,
    store: Path | None = None,
) -> Evaluation:
    """Score every target on the tasks that it has seen.

    Whatever ``store``, a file, already holds for the same weights and the same task is taken from there; it is written
    after every task, and keeps the rows of bases and experts that are not scored any more. Raises EvaluationError with
    all problems before a model runs, and when a model changes meanwhile; PlanError when there is no such device;
    CheckpointError when a model cannot be loaded.
    """
    progress = progress or Progress()
    chosen = devices.choose(device)
    progress.stage("reading data")
    checked = Checked(targets, tasks)
    for note in checked.notes:
        progress.note(f"note: {note}")
    facts = [checked.facts(task) for task in checked.tasks]
    known = {} if store is None else results.known_scores(store)
    stamps = [weights_stamp(target.backbone) for target in targets]
    rows = [_row(target, facts, known) for target in targets]

    carried = [] if store is None else results.carried(store, facts, rows)
    carried = [row for row in carried if row["scores"]]
    base = [row for row in carried if row["kind"] == "base"]
    experts = [row for row in carried if row["kind"] == "expert"]

    def so_far() -> Evaluation:
        wanted = [_asked(row, target, checked) for row, target in zip(rows, targets, strict=True)]
        return results.make(facts, [*base, *wanted, *experts], str(chosen.main), receipt.versions())

    scorer = Scorer(chosen.main, progress)
    progress.stage("scoring")
    for row, target in zip(rows, targets, strict=True):
        for task in checked.tasks:
            reading = checked.reading(target, task)
            if reading is None or task.name in row["scores"]:
                continue
            row["scores"][task.name] = scorer.score(checked.samples[task.name], target, reading)
            _require_unchanged(targets, stamps)
            if store is not None:
                results.write(store, so_far())
    done = so_far()
    if store is not None:
        results.write(store, done)
    return done


def _require_unchanged(targets: Sequence[Target], stamps: Sequence[object]) -> None:
    """What was scored must be what stood there in the beginning: `dopkit add` may have put another model there."""
    changed = [target for target, stamp in zip(targets, stamps, strict=True) if weights_stamp(target.backbone) != stamp]
    if changed:
        problems = [Problem(target.label, f"{target.backbone} holds other files now") for target in changed]
        raise EvaluationError("a model has changed while it was scored: score it again", problems)


def _row(target: Target, facts: Sequence[Mapping[str, Any]], known: results.Known) -> dict[str, Any]:
    """The row of a target with what is known of it already."""
    weights = weights_digest(target.backbone)
    digests = {fact["name"]: fact["digest"] for fact in facts}
    scores = {name: known[weights, one] for name, one in digests.items() if (weights, one) in known}
    place = {"label": target.label, "kind": target.kind, "step": target.step, "model": target.model}
    return {**place, "weights": weights, "scores": scores}


def _asked(row: Mapping[str, Any], target: Target, checked: Checked) -> dict[str, Any]:
    """The row with the scores that were asked for, in the order of the tasks."""
    names = [task.name for task in checked.tasks if checked.reading(target, task)]
    return {**row, "scores": {name: row["scores"][name] for name in names if name in row["scores"]}}
