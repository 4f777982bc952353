"""A merge from recipe to folder: the steps in order, nothing else.

Each step lives in a module of its own. Nothing is printed; ``Progress`` is told what happens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from dopkit import publishing, receipt
from dopkit.errors import PlanError
from dopkit.merging import merge
from dopkit.planning import Plan
from dopkit.preparing import Options, compare_values, fetch, prepare
from dopkit.progress import Progress
from dopkit.recipe import Recipe

__all__ = ["Options", "Result", "plan", "run"]


@dataclass(frozen=True)
class Result:
    """A finished merge."""

    folder: Path
    plan: Plan
    receipt: receipt.Receipt
    already_there: bool = False  # it had been finished before; nothing was done
    pushed: publishing.Pushed | None = None


def plan(
    recipe: Recipe, out: str | Path | None = None, options: Options | None = None, progress: Progress | None = None
) -> Plan:
    """Everything that ``run`` would do, from headers alone: no weight is downloaded, nothing is written.

    Raises PlanError with every reason why the merge cannot work; OutputError when another merge is in the way.
    """
    with prepare(recipe, out, options or Options(), progress or Progress()) as prepared:
        prepared.output.finished(prepared.fingerprint)  # raises if another merge is in the way
        if not prepared.plan.download_bytes:
            compare_values(prepared)
        return prepared.plan


def run(
    recipe: Recipe, out: str | Path | None = None, options: Options | None = None, progress: Progress | None = None
) -> Result:
    """Merge into the folder ``out`` (by default named after the recipe), or finish an interrupted merge there.

    The folder appears when it is complete and verified; with ``options.push`` it is published then. Raises a
    DopkitError: PlanError before anything is written; MergeError, OutputError or HubError from the middle, after
    which the same call continues.
    """
    options, progress = options or Options(), progress or Progress()
    if options.push is None:
        return _run(recipe, out, options, progress)
    push = options.push.by_default(recipe.repo_id)
    result = _run(recipe, out, replace(options, push=push), progress)
    assert push.repo_id is not None, "the plan was refused without one"
    return replace(result, pushed=publishing.push(result.folder, push.repo_id, push, progress))


def _run(recipe: Recipe, out: str | Path | None, options: Options, progress: Progress) -> Result:
    with prepare(recipe, out, options, progress, download=True) as prepared:
        if prepared.output.finished(prepared.fingerprint, weights=not options.frees):
            done = receipt.read(prepared.output.path)
            return Result(prepared.output.path, prepared.plan, done, already_there=True)
        fetch(prepared, progress)
        try:
            compare_values(prepared)
        except PlanError:
            prepared.output.discard_untouched()
            raise
        done = merge(prepared, progress, options)
        return Result(prepared.output.path, prepared.plan, done)
