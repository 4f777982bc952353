"""Scoring merged models: tasks from a file, models at every step, the results as data and on the card.

from dopkit.evaluation import evaluate_model

print(evaluate_model("merged", "tasks.yaml")["acc"])
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dopkit.progress import Progress

__all__ = ["evaluate_model"]


def evaluate_model(
    model: str | Path,
    tasks: str | Path,
    device: str = "auto",
    limit: int | None = None,
    sources: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score a model, or a merge and its steps, on the tasks of a file; the results are written beside the model.

    ``model`` is a folder or a repository on the Hub; of a repository nothing is written, nor of a
    folder that is read-only. ``limit`` scores no more than
    so many samples of each task, ``sources`` also the merge's base and the models that went in. Returns what
    ``dopkit_evaluation.json`` holds. Raises RecipeError, EvaluationError, CheckpointError, HubError, OutputError.
    """
    from dopkit import receipt
    from dopkit.evaluation import recording
    from dopkit.evaluation.running import evaluate
    from dopkit.evaluation.targets import targets
    from dopkit.evaluation.tasks import load_tasks
    from dopkit.loading import is_folder, local_copy
    from dopkit.writer import EVALUATION, RECEIPT

    asked = load_tasks(tasks)
    if limit is not None:
        asked = tuple(replace(task, limit=min(limit, task.limit or limit)) for task in asked)
    own = is_folder(model)
    folder = local_copy(model, also=(RECEIPT, receipt.RECIPE_FILE))
    kept = own and os.access(folder, os.W_OK)
    if own and not kept and progress is not None:
        progress.note(f"{folder} cannot be written to: the scores are told, and not kept beside the model")
    scored = targets(folder, sources, foreign=not own)
    found = evaluate(scored, asked, device, progress, folder / EVALUATION if kept else None)
    if kept:
        recording.record(folder, found)
    return found
