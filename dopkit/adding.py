"""A merged model that grows: more models folded in, without those that are in it already.

Reads the base, the merged model and the new ones, whatever came before; what is known of that stands in the recipe and
the state beside the merged weights.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dopkit import earlier, heads, refs, steps
from dopkit.assessment import check_tasks
from dopkit.earlier import EarlierMerge
from dopkit.errors import DopkitError, OutputError, PlanError, Problem, RecipeError, count
from dopkit.merging import Earlier
from dopkit.pipeline import Result, assessed, finish, foreseen, published
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
    from_experts: bool = False  # every earlier model is read again

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
        missing = self.old.state_download_bytes if kept else 0
        return recipe, continuation(self.old.state, self.old.recipe, kept, inexact, missing)


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
    OutputFolder(Path(merged), grows=True).put_back()  # if an earlier call was killed while it replaced the folder
    wanted = _addition(merged, experts, out, options or Options(), parameters or {}, from_experts)
    options = wanted.options
    if options.tasks is not None:
        check_tasks(options.tasks)
    with _prepared(wanted, progress, download=True) as prepared:
        result = finish(prepared, options, progress, _earlier(wanted, prepared), related=True)
    try:
        return published(assessed(result, options, progress), options, progress)
    except DopkitError as error:
        if not wanted.output.grows:
            raise
        done = Problem(str(result.folder), "holds the added models all the same", _AFTERWARDS)
        raise type(error)(error.headline, [*error.problems, done]) from error


_AFTERWARDS = "Go on from it with `dopkit eval` or `dopkit push`; `add` would refuse to add them again."


def plan_addition(
    merged: str | Path,
    experts: Sequence[str],
    out: str | Path | None = None,
    options: Options | None = None,
    parameters: Mapping[str, Any] | None = None,
    from_experts: bool = False,
) -> Plan:
    """What ``add`` would do, from headers alone: no weight is downloaded, nothing is written.

    Raises as ``add`` does before it writes anything.
    """
    wanted = _addition(merged, experts, out, options or Options(), parameters or {}, from_experts)
    with _prepared(wanted, Progress(), download=False) as prepared:
        return foreseen(prepared, related=True)


def _addition(
    merged: str | Path,
    experts: Sequence[str],
    out: str | Path | None,
    options: Options,
    parameters: Mapping[str, Any],
    from_experts: bool,
) -> Addition:
    old = earlier.look(merged)
    if problems := _growth_problems(old, len(experts), from_experts):
        raise PlanError(f"cannot add to {old.ref.short}: {count(len(problems), 'problem')}", problems)
    entries = _entries(old, experts, parameters)
    here = old.local and (out is None or Path(out).resolve() == old.folder.resolve())
    place = _own_folder(old) if here else Path(out) if out is not None else Path(str(old.ref.repo).rpartition("/")[2])
    if here and not options.overwrite and (strangers := old.strangers()):
        what = f"is replaced as a whole, and holds files that are not of the merge: {', '.join(strangers[:5])}"
        remedy = "Move them away, choose another folder with -o, or let them go with --overwrite."
        raise OutputError(f"cannot replace {old.ref.short}", [Problem(str(place), what, remedy)])
    if steps.saved(old.folder):  # once steps are kept, they go on being kept
        options = replace(options, save_steps=True)
    if options.keeps_steps and options.stream and not old.local and not from_experts:
        what = f"{old.ref.short} is kept as a step, and --stream stores nothing of it"
        raise PlanError("cannot keep steps", [Problem("", what, "Leave out --stream, or --save-steps and --tasks.")])
    if options.push is not None:
        # A revision of the repository is no place to publish to by itself.
        own = old.ref.repo if "@" not in str(merged) else None
        options = replace(options, push=options.push.by_default(own or old.recipe.repo_id))
    return Addition(old, entries, OutputFolder(place, options.overwrite, here), options, from_experts)


def _own_folder(old: EarlierMerge) -> Path:
    """The folder as it was named, so that messages name it that way; where it is, if that is but ``.`` or a link."""
    named = Path(old.ref.text)
    return old.folder if named.is_symlink() or named.name in ("", "..") else named


def _entries(old: EarlierMerge, experts: Sequence[str], parameters: Mapping[str, Any]) -> tuple[ModelEntry, ...]:
    """The new models as entries of the recipe. Raises RecipeError for what cannot be one, or is not new."""
    problems = []
    entries: list[ModelEntry] = []
    there = {entry.model.key: number for number, entry in enumerate(old.recipe.models, start=1)}
    for text in experts:
        try:
            ref = refs.parse(text, Path())
        except ValueError as error:
            folder = f"Write ./{text} for the folder." if Path(text).is_dir() else ""
            problems.append(Problem("", str(error), folder))
            continue
        if ref.repo and Path(text).is_dir():
            what = "is the name of a folder here, and read as that of a Hub repository"
            problems.append(Problem(text, what, f"Write ./{text} for the folder, or {text}@main for the repository."))
            continue
        if ref.key == old.ref.key:
            problems.append(Problem(text, "is the merged model itself, to which others are added"))
        elif ref.key in there:
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
    if old.recipe.parts:
        return [Problem("", f"{old.ref.short} was put together from slices of layers, so nothing can be added to it")]
    if most is not None and len(old.recipe.models) + more > most:
        return [Problem("", f"{method.name} takes {count(most, 'model')}, and {old.ref.short} holds them")]
    others = [one.method for one in old.recipe.overrides if not one.method.grows]
    method = others[0] if others else method
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
def _prepared(wanted: Addition, progress: Progress, download: bool) -> Iterator[Prepared]:
    recipe, before = (wanted.whole, None) if wanted.from_experts else wanted.on_top()
    name = wanted.old.ref.short
    if before and before.inexact:
        progress.note(f"{name}: {before.inexact} (--from-experts reads the earlier models again)")
    if before and before.kept and not wanted.options.keep_state:
        progress.note(f"{name}: its kept state is read, but not kept on for the next model (--keep-state does)")
    with prepare(recipe, wanted.output, wanted.options, progress, download, continues=before) as prepared:
        _refuse_other_models(wanted, prepared.plan)
        if before and before.kept and wanted.old.local:
            wanted.old.open_state(prepared.plan).close()  # to know before anything is written
        yield prepared


def _refuse_other_models(wanted: Addition, plan: Plan) -> None:
    """What is not what the earlier merge was made from any more; a new model that is an earlier one renamed."""
    old, problems = wanted.old, []
    if old.state.base is not None and plan.donor.identity != old.state.base.identity:
        what = f"is not what {old.ref.short} was merged from any more: its weights have changed"
        problems.append(Problem(plan.donor.ref.short, what, "Bring the base back, or merge from the beginning."))
    again = plan.models[: len(old.state.models)] if wanted.from_experts else ()
    for source, one in zip(again, old.state.models, strict=False):
        if source.identity != one.identity:
            what = f"is not what went into {old.ref.short}: its weights have changed"
            problems.append(Problem(source.ref.short, what, "Bring the model back, or merge from the beginning."))
    known = {one.identity: one.model for one in old.state.models}
    for source in plan.models[-len(wanted.entries) :]:
        if source.identity in known:
            what = f"is in {old.ref.short} already, as {known[source.identity]}: the same weights"
            problems.append(Problem(source.ref.short, what))
        known[source.identity] = source.ref.short
    if problems:
        raise PlanError(f"cannot add to {old.ref.short}: {count(len(problems), 'problem')}", problems)


def _earlier(wanted: Addition, prepared: Prepared) -> Earlier | None:
    """What the merge takes over; nothing when every model is read again."""
    before = prepared.plan.continues
    if before is None:
        return None
    state = partial(wanted.old.open_state, prepared.plan) if before.kept else None
    return Earlier(wanted.old.receipt, state, _take_along(wanted, prepared))


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
        with suppress(FileNotFoundError):
            shutil.copyfile(merged.side_file(EVALUATION), folder / EVALUATION)

    return take_along
