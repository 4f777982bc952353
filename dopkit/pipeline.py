"""A merge from recipe to folder: the steps in order, nothing else.

Each step lives in a module of its own. Nothing is printed; ``Progress`` is told what happens.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from dopkit import adapting, publishing, receipt, steps
from dopkit.assessment import Assessment, assess, check_tasks
from dopkit.engine.companions import Sizes, measure
from dopkit.errors import OutputError, PlanError, Problem
from dopkit.keeping import keep_stages
from dopkit.merging import Earlier, merge
from dopkit.planning import Plan
from dopkit.planning.outputs import STAGES, STATE
from dopkit.preparing import Options, Prepared, agree, compare_values, fetch, prepare
from dopkit.progress import Progress
from dopkit.recipe import Recipe
from dopkit.writer import OutputFolder

__all__ = ["Options", "Result", "plan", "run"]


@dataclass(frozen=True)
class Result:
    """A finished merge."""

    folder: Path
    plan: Plan
    receipt: receipt.Receipt
    already_there: bool = False  # it had been finished before; nothing was done
    assessment: Assessment | None = None  # what it scores, when tasks were given
    pushed: publishing.Pushed | None = None


def plan(
    recipe: Recipe, out: str | Path | None = None, options: Options | None = None, progress: Progress | None = None
) -> Plan:
    """Everything that ``run`` would do, from headers alone: no weight is downloaded, nothing is written.

    Raises PlanError with every reason why the merge cannot work; OutputError when another merge is in the way.
    """
    options = options or Options()
    if recipe.output == "adapter":
        return adapting.plan(recipe, place_of(recipe, out, options), options, progress or Progress())
    with prepare(recipe, place_of(recipe, out, options), options, progress or Progress()) as prepared:
        return foreseen(prepared)


def foreseen(prepared: Prepared, related: bool = False) -> Plan:
    """The plan, if nothing that can be seen without a download speaks against it; ``related`` as ``compare_values``."""
    prepared.output.finished(prepared.fingerprint)  # raises if another merge is in the way
    if not prepared.plan.download_bytes:
        compare_values(prepared, related)
    return prepared.plan


def run(
    recipe: Recipe, out: str | Path | None = None, options: Options | None = None, progress: Progress | None = None
) -> Result:
    """Merge into the folder ``out`` (by default named after the recipe), or finish an interrupted merge there.

    The folder appears when it is complete and verified; with ``options.push`` it is published then. Where
    ``options.processes`` are several, all of them call this, and the first one publishes. Raises a
    DopkitError: PlanError before anything is written; MergeError, OutputError or HubError from the middle, after
    which the same call continues.
    """
    options, progress = options or Options(), progress or Progress()
    if options.push is not None:
        options = replace(options, push=options.push.by_default(recipe.repo_id))
    processes = options.processes
    with processes.first_goes_first():
        if recipe.output == "adapter" and processes.number > 1:
            remedy = "Start dopkit itself, without `accelerate launch`."
            raise PlanError("an adapter is merged by one process", [Problem("", "", remedy)])
        _check_cluster(recipe, options)
        if options.tasks is not None:
            check_tasks(options.tasks)
    if recipe.output == "adapter":
        made = Result(*adapting.run(recipe, place_of(recipe, out, options), options, progress))
        return published(made, options, progress)
    with ExitStack() as stack:
        with processes.first_goes_first():
            output = place_of(recipe, out, options)
            prepared = stack.enter_context(prepare(recipe, output, options, progress, download=True))
        agree(prepared, processes)
        result = finish(prepared, options, progress)
    if not processes.first:
        return result
    return published(assessed(result, options, progress), options, progress)


def _check_cluster(recipe: Recipe, options: Options) -> None:
    """Refuse what a cluster cannot do, or one that is not there. Raises PlanError."""
    if options.cluster is None:
        return
    if options.processes.number > 1:
        remedy = "Leave out --executor, or start dopkit itself, without `accelerate launch`."
        raise PlanError("a merge is done by a cluster or by processes that were launched", [Problem("", "", remedy)])
    if recipe.output == "adapter":
        raise PlanError("an adapter is merged by one process", [Problem("", "", "Leave out --executor.")])
    options.cluster.check()


def place_of(recipe: Recipe, out: str | Path | None, options: Options) -> OutputFolder:
    """Where a merge goes: by default a folder named after the recipe."""
    return OutputFolder(Path(out) if out is not None else Path(recipe.name), options.overwrite)


def finish(
    prepared: Prepared, options: Options, progress: Progress, earlier: Earlier | None = None, related: bool = False
) -> Result:
    """Download what is missing and merge, unless the folder already is this very merge.

    ``related`` as ``compare_values`` has it.
    """
    output, made, processes = prepared.output, prepared.plan, options.processes
    done = _finished(prepared, options) if processes.first else None
    if (done := processes.tell(done)) is not None:
        return Result(output.path, made, done, already_there=True)
    fetch(prepared, progress, processes)
    sizes = processes.tell(_looked_at(prepared, progress, related) if processes.first else None)
    if options.keep_stages:
        keep_stages(prepared, progress, processes, options.cluster)
    return Result(output.path, made, merge(prepared, progress, options, earlier, sizes))


def _finished(prepared: Prepared, options: Options) -> receipt.Receipt | None:
    """The receipt of this very merge, if the folder has it already. Raises OutputError when it holds another."""
    if not prepared.output.finished(prepared.fingerprint, weights=not options.frees):
        return None
    done = receipt.read(prepared.output.path)
    _require(prepared.plan, prepared.output.path)
    return done


def _looked_at(prepared: Prepared, progress: Progress, related: bool) -> Sizes:
    """What only the values tell: the sizes of what is read beside the models. Raises PlanError."""
    try:
        compare_values(prepared, related)
        return measure(prepared.plan, prepared.sources.companions, progress)
    except PlanError:
        prepared.output.discard_untouched()
        raise


def assessed(result: Result, options: Options, progress: Progress) -> Result:
    """The merge scored and reported, if tasks were given."""
    if options.tasks is None:
        return result
    found = assess(result.folder, options.tasks, options, progress)
    return replace(result, assessment=found, receipt=found.receipt)


def published(result: Result, options: Options, progress: Progress) -> Result:
    """The merge on the Hub as well, if that was asked for."""
    if options.push is None:
        return result
    assert options.push.repo_id is not None, "the plan was refused without one"
    pushed = publishing.push(result.folder, options.push.repo_id, options.push, progress)
    return replace(result, pushed=pushed)


def _require(made: Plan, folder: Path) -> None:
    """A finished merge must have what is asked for besides the model. Raises OutputError."""
    lacks = []
    if made.keeps_steps and not set(made.written_steps[:-1]) <= set(steps.saved(folder)):
        lacks.append("the models of earlier steps")
    if made.keeps_stages and not all((folder / STAGES / name).is_dir() for name in made.stages):
        lacks.append("the models of its stages")
    if made.state_shards and not (folder / STATE).is_dir():
        lacks.append("the state of its folds")
    if lacks:
        what = f"is this merge, without {' and '.join(lacks)}"
        problem = Problem(str(folder), what, "Merge again with --overwrite.")
        raise OutputError("the output folder is in the way", [problem])
