"""The two numbers that sum up a continual merge, from its table of scores. Pure functions of the evaluation's own data.

The accuracy matrix has a row for every step and a column for every task: ``a[t][i]`` is the accuracy on task ``i`` of
the model after step ``t``. The definitions are those of continual learning (Lopez-Paz and Ranzato, arXiv:1706.08840,
where each step brings one task).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

DEFINITIONS = {
    "acc": "ACC: the mean accuracy of the final model over all classification tasks.",
    "bwt": "BWT (backward transfer): over the classification tasks learned before the last step, the mean of the final "
    "accuracy minus the accuracy right after the task's own model was merged. Below zero: forgetting.",
    "perplexity": "Perplexity: exp of the mean negative log-likelihood of a token given those before it, over the "
    "concatenated text in windows that overlap by half; every token but the first is scored once.",
}


def final_row(rows: Sequence[Row]) -> Row | None:
    """The row of the finished model: the last step, or the only model there is."""
    steps = [row for row in rows if row["kind"] == "step"]
    if steps:
        return max(steps, key=lambda row: int(row["step"]))
    models = [row for row in rows if row["kind"] == "model"]
    return models[0] if len(models) == 1 else None


def acc(tasks: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> float | None:
    """The mean over the accuracy tasks of the final row; None without such tasks, or while one has no score."""
    final = final_row(rows)
    values = [_score(final, task) for task in tasks if task["metric"] == "accuracy"]
    return _mean(values)


def bwt(tasks: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> float | None:
    """The mean change since each task was learned; None when a step is missing, or only one has been made.

    A task is learned at the step at which its ``model`` came in. Tasks of no model have not been learned at any step,
    and those of the last step had no time to change: both are left out.
    """
    final = final_row(rows)
    if final is None or final["kind"] != "step":
        return None
    learned = {row["model"]: row for row in rows if row["kind"] == "step"}
    changes: list[float | None] = []
    for task in tasks:
        if task["metric"] != "accuracy" or task["model"] is None or task["model"] == final["model"]:
            continue
        before, after = _score(learned.get(task["model"]), task), _score(final, task)
        changes.append(None if before is None or after is None else after - before)
    return _mean(changes)


def _score(row: Row | None, task: Mapping[str, Any]) -> float | None:
    score = row["scores"].get(task["name"]) if row is not None else None
    return None if score is None else float(score["value"])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(values) else None
