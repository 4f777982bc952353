"""A finished merge, looked at: scored on tasks after every step, its task vectors compared, the report written.

Whatever goes wrong here, the merge itself is done and stays.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dopkit import receipt, report
from dopkit.checkpoints import open_checkpoint
from dopkit.errors import DopkitError
from dopkit.evaluation import evaluate_model
from dopkit.evaluation.checking import Checked
from dopkit.evaluation.tasks import load_tasks
from dopkit.inspection import inspect
from dopkit.preparing import Options
from dopkit.progress import Progress
from dopkit.relations import Relations
from dopkit.writer import RECEIPT, write_text

_MOST_NUMBERS = 200_000  # of relations in a receipt; beyond, single tensors are left out


@dataclass(frozen=True)
class Assessment:
    """What was found, and where it is shown."""

    evaluation: dict[str, Any]
    report: Path
    receipt: receipt.Receipt  # with what was found


def check_tasks(tasks: str | Path) -> None:
    """Look at a file of tasks and at their data, before anything is merged. Raises RecipeError, EvaluationError."""
    Checked((), load_tasks(tasks))


def assess(folder: Path, tasks: str | Path, options: Options, progress: Progress) -> Assessment:
    """Score a merge and its steps, and the base and experts if they are on the disk; write the report.

    Raises RecipeError, EvaluationError, CheckpointError or OutputError; the merge in ``folder`` stays as it is.
    """
    sources = _on_disk(folder)
    if sources and "relations" not in receipt.read(folder):
        _relate(folder, options, progress)
    named = receipt.read_recipe(folder).refs
    loadable = sources and all(ref.adapter is None and ref.stage is None for ref in named)
    evaluation = evaluate_model(folder, tasks, options.device, sources=loadable, progress=progress)
    written = report.write(folder)
    return Assessment(evaluation, written, receipt.read(folder))


def _on_disk(folder: Path) -> bool:
    """Whether all that went into the merge can be read without a download."""
    for ref in receipt.read_recipe(folder).real_refs:
        try:
            with closing(open_checkpoint(ref)) as checkpoint:
                if checkpoint.missing:
                    return False
        except DopkitError:
            return False
    return True


def _relate(folder: Path, options: Options, progress: Progress) -> None:
    """Put into the receipt how the task vectors relate, where there is a base to tell."""
    recipe = receipt.read_recipe(folder)
    if recipe.base_model is None:
        return
    try:
        found = inspect(recipe, options, progress, ranks=False)
    except DopkitError as error:
        progress.note(f"the task vectors were not compared: {error.headline}")
        return
    done = receipt.read(folder)
    write_text(folder / RECEIPT, receipt.to_json({**done, "relations": _shortened(found)}))


def _shortened(found: Relations) -> dict[str, Any]:
    data = found.as_data()
    if len(found.tensors) * len(found.models) ** 2 > _MOST_NUMBERS:
        data["tensors"] = {}
    return data
