"""A merged model that grows: more models folded in, without those that are in it already.

Reads the base, the merged model and the new ones, whatever came before; what is known of that stands in the recipe and
the state beside the merged weights.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dopkit import earlier, heads, refs, steps
from dopkit.assessment import check_tasks
from dopkit.checkpoints import Checkpoint
from dopkit.earlier import EarlierMerge
from dopkit.errors import PlanError, Problem, RecipeError, count
from dopkit.merging import Earlier
from dopkit.pipeline import Result, assessed, finish, published, run
from dopkit.planning import Continuation, Plan
from dopkit.preparing import Options, Prepared, prepare
from dopkit.progress import Progress
from dopkit.recipe import ModelEntry, Recipe
from dopkit.state import continuation
from dopkit.writer import EVALUATION, OutputFolder


@dataclass(frozen=True)
class Addition:
    """What is to be added to what, and where the result goes."""

    old: EarlierMerge
    entries: tuple[ModelEntry, ...]
    output: OutputFolder
    options: Options

    @property
    def whole(self) -> Recipe:
        """The recipe that merges all models at once."""
        changed = {"name": self.output.path.name, "models": (*self.old.recipe.models, *self.entries)}
        return self.old.recipe.model_copy(update=changed)

    def on_top(self) -> tuple[Recipe, Continuation]:
        """The recipe that goes on from the merged weights, and what it must know of the earlier merge."""
        parameters, inexact = self.old.recipe.parameters, None
        kept = bool(self.old.state.kept)
        if not kept and (lost := parameters.without_state()):
            parameters, inexact = lost
        models = (ModelEntry(model=self.old.ref), *self.entries)
        changed = {"name": self.output.path.name, "models": models, "parameters": parameters}
        recipe = self.old.recipe.model_copy(update=changed)
        return recipe, continuation(self.old.state, self.old.recipe, kept, inexact)


def add(
    merged: str | Path,
    experts: Sequence[str],
    out: str | Path | None = None,
    options: Options | None = None,
    progress: Progress | None = None,
    parameters: Mapping[str, Any] | None = None,
    from_experts: bool = False,
) -> Result:
    """Fold more models into one that dopkit made, in the given order; ``merged`` is a folder, or user/name.

    Without ``out`` a folder is replaced once its successor is complete and verified, and a Hub model goes to a folder
    of its name. ``parameters`` are such as a recipe may set per model, for the new ones. ``from_experts`` reads every
    earlier model again instead of going on from the merged weights.

    Gives the weights that merging all models at once gives: to the last bit when the state of the folds was kept or
    the weights are float32 and unscaled; else within one rounding of what was written. Raises as ``run`` does;
    OutputError when ``merged`` is not a merge of dopkit's, PlanError when a model is in it already.
    """
    progress = progress or Progress()
    wanted = _addition(merged, experts, out, options or Options(), parameters or {}, from_experts)
    output, options = wanted.output, wanted.options
    if options.tasks is not None:
        check_tasks(options.tasks)
    if from_experts:
        return run(wanted.whole, output.path, replace(options, overwrite=options.overwrite or output.grows), progress)
    with _prepared(wanted, progress, download=True) as (prepared, state):
        result = finish(prepared, options, progress, Earlier(wanted.old.receipt, state, _take_along(wanted, prepared)))
    return published(assessed(result, options, progress), options, progress)


def plan_addition(
    merged: str | Path,
    experts: Sequence[str],
    out: str | Path | None = None,
    options: Options | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> Plan:
    """What ``add`` would do, from headers alone. Raises as ``add`` does before it writes anything."""
    wanted = _addition(merged, experts, out, options or Options(), parameters or {})
    with _prepared(wanted, Progress(), download=False) as (prepared, _):
        return prepared.plan


def _addition(
    merged: str | Path,
    experts: Sequence[str],
    out: str | Path | None,
    options: Options,
    parameters: Mapping[str, Any],
    from_experts: bool = False,
) -> Addition:
    old = earlier.look(merged)
    if problems := _growth_problems(old, len(experts), from_experts):
        raise PlanError(f"cannot add to {old.ref.short}: {count(len(problems), 'problem')}", problems)
    here = old.local and (out is None or Path(out).absolute() == old.folder)
    place = Path(old.ref.text) if here else Path(out) if out is not None else Path(str(old.ref.repo).rpartition("/")[2])
    if steps.saved(old.folder):  # once steps are kept, they go on being kept
        options = replace(options, save_steps=True)
    if options.push is not None:
        options = replace(options, push=options.push.by_default(old.ref.repo))
    return Addition(old, _entries(old, experts, parameters), OutputFolder(place, options.overwrite, here), options)


def _entries(old: EarlierMerge, experts: Sequence[str], parameters: Mapping[str, Any]) -> tuple[ModelEntry, ...]:
    """The new models as entries of the recipe. Raises RecipeError for what cannot be one, or is not new."""
    problems = []
    entries: list[ModelEntry] = []
    there = {entry.model.key: number for number, entry in enumerate(old.recipe.models, start=1)}
    for text in experts:
        try:
            ref = refs.parse(text, Path())
        except ValueError as error:
            problems.append(Problem("", str(error)))
            continue
        if ref.key in there:
            problems.append(Problem(text, f"is in {old.ref.short} already: its model {there[ref.key]}"))
        there[ref.key] = len(there) + 1
        entries.append(ModelEntry(model=ref, parameters=dict(parameters)))
    problems += _parameter_problems(old.recipe, parameters)
    if problems:
        raise RecipeError(f"cannot add to {old.ref.short}: {count(len(problems), 'problem')}", problems)
    return tuple(entries)


def _growth_problems(old: EarlierMerge, more: int, from_experts: bool) -> list[Problem]:
    """Why so many models cannot come in: the method takes fewer, or it must see all of them at once."""
    method, most = old.recipe.method, old.recipe.method.most_models
    if most is not None and len(old.recipe.models) + more > most:
        return [Problem("", f"{method.name} takes {count(most, 'model')}, and {old.ref.short} holds them")]
    if not method.grows and not from_experts:
        what = f"{method.name} merges all models at once: what was merged does not tell what went in"
        return [Problem("", what, "Read the earlier models again with --from-experts.")]
    return []


def _parameter_problems(recipe: Recipe, parameters: Mapping[str, Any]) -> list[Problem]:
    """What keeps these from being parameters of a single model."""
    allowed = sorted(recipe.method.parameters.per_model)
    outside = [key for key in parameters if key not in allowed]
    if outside:
        known = ", ".join(allowed) or "none"
        return [Problem(key, f"is no parameter of a single model with {recipe.method.name} (those: {known})")
                for key in outside]  # fmt: skip
    try:
        type(recipe.parameters).model_validate({**recipe.parameters.given(), **parameters})
    except ValidationError as error:
        return [Problem("", str(detail["ctx"]["error"] if "ctx" in detail else detail["msg"]))
                for detail in error.errors()]  # fmt: skip
    return []


@contextmanager
def _prepared(wanted: Addition, progress: Progress, download: bool) -> Iterator[tuple[Prepared, Checkpoint | None]]:
    recipe, before = wanted.on_top()
    if before.inexact:
        progress.note(f"{wanted.old.ref.short}: {before.inexact} (--from-experts reads the earlier models again)")
    with ExitStack() as stack:
        state = wanted.old.open_state() if before.kept and download else None
        if state is not None:
            stack.callback(state.close)
        prepared = stack.enter_context(
            prepare(recipe, wanted.output, wanted.options, progress, download, continues=before)
        )
        _refuse_other_models(wanted.old, prepared.plan)
        yield prepared, state


def _refuse_other_models(old: EarlierMerge, plan: Plan) -> None:
    """A base that is not the one of the earlier merge, a new model that is one of the earlier ones under a new name."""
    problems = []
    if old.state.base is not None and plan.donor.identity != old.state.base.identity:
        what = f"is not what {old.ref.short} was merged from any more: its weights have changed"
        problems.append(Problem(plan.donor.ref.short, what, "Bring the base back, or merge from the beginning."))
    known = {one.identity: one.model for one in old.state.models}
    for source in plan.models[1:]:
        if source.identity in known:
            what = f"is in {old.ref.short} already, as {known[source.identity]}: the same weights"
            problems.append(Problem(source.ref.short, what))
    if problems:
        raise PlanError(f"cannot add to {old.ref.short}: {count(len(problems), 'problem')}", problems)


def _take_along(wanted: Addition, prepared: Prepared) -> Callable[[Path], None]:
    """Puts what belongs to the earlier models into the working folder: heads, steps, what was measured of them."""
    old, merged = wanted.old, prepared.sources.models[0]

    def take_along(folder: Path) -> None:
        heads.carry_over(merged, old.receipt.get("heads", []), folder)
        if wanted.options.keeps_steps:
            merged.fetch()
            for name in merged.side_files:
                merged.side_file(name)  # a repository's files come into the cache one by one
            steps.carry_over(old.folder, folder, len(old.recipe.models))
        if (old.folder / EVALUATION).is_file():
            shutil.copyfile(old.folder / EVALUATION, folder / EVALUATION)

    return take_along
