"""What is to be added to what: read and judged from the words and the small files alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dopkit import earlier, refs, steps
from dopkit.earlier import EarlierMerge
from dopkit.errors import OutputError, PlanError, Problem, RecipeError, count
from dopkit.planning import Continuation, Plan
from dopkit.preparing import Options
from dopkit.progress import Progress
from dopkit.recipe import ModelEntry, Recipe
from dopkit.recipe.tokenizer import TokenizerSettings
from dopkit.refs import ModelRef
from dopkit.state import continuation
from dopkit.writer import OutputFolder


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
        """The recipe that goes on from what was merged, and what it must know of the earlier merge."""
        parameters, inexact = self.old.recipe.parameters, None
        kept = bool(self.old.state.kept)
        if not kept and (lost := parameters.without_state()):
            parameters, inexact = lost
        overrides = self.old.recipe.overrides
        for index, one in enumerate(overrides):
            if not kept and (lost := one.parameters.without_state()):
                changed_one, inexact = one.model_copy(update={"parameters": lost[0]}), lost[1]
                overrides = (*overrides[:index], changed_one, *overrides[index + 1 :])
        if self.old.recipe.rank is not None and "rank" in self.old.receipt["verified"]:
            cut = f"what was merged before was cut to rank {self.old.recipe.rank}"
            inexact = f"{inexact}; {cut}" if inexact else cut
        models = (ModelEntry(model=self.old.merged), *self.entries)
        changed = {"name": self.output.path.name, "models": models, "parameters": parameters}
        changed["overrides"] = overrides
        recipe = self.old.recipe.model_copy(update=changed)
        missing = self.old.state_download_bytes if kept else 0
        before = continuation(self.old.state, self.old.recipe, kept, inexact, missing)
        return recipe, replace(before, heads=tuple(head["name"] for head in self.old.receipt.get("heads", [])))

    def tell(self, before: Continuation | None, progress: Progress) -> None:
        """What going on from what was merged loses, if anything."""
        name = self.old.ref.short
        if before and before.inexact:
            progress.note(f"{name}: {before.inexact} (--from-experts reads the earlier models again)")
        if before and before.kept and not self.options.keep_state:
            progress.note(f"{name}: its kept state is read, but not kept on for the next model (--keep-state does)")


def addition(
    merged: str | Path,
    experts: Sequence[str],
    out: str | Path | None,
    options: Options,
    parameters: Mapping[str, Any],
    from_experts: bool,
) -> Addition:
    """Raises OutputError, PlanError, RecipeError, HubError for what cannot be added, whatever the headers say."""
    if not experts:
        raise PlanError(f"cannot add to {merged}", [Problem("", "no model is named that is to be added")])
    old = earlier.look(merged)
    if problems := _growth_problems(old, len(experts), from_experts):
        raise PlanError(f"cannot add to {old.ref.short}: {count(len(problems), 'problem')}", problems)
    entries = _entries(old, experts, parameters)
    here = old.local and (out is None or Path(out).resolve() == old.folder.resolve())
    place = _own_folder(old) if here else Path(out) if out is not None else Path(str(old.ref.repo).rpartition("/")[2])
    output = OutputFolder(place, options.overwrite, here)
    refuse_strangers(old, output, () if old.is_adapter else None)
    if steps.saved(old.folder):  # once steps are kept, they go on being kept
        options = replace(options, save_steps=True)
    if options.keeps_steps and options.stream and not old.local and not from_experts:
        what = f"{old.ref.short} is kept as a step, and --stream stores nothing of it"
        raise PlanError("cannot keep steps", [Problem("", what, "Leave out --stream, or --save-steps and --tasks.")])
    if options.push is not None:
        # A revision of the repository is no place to publish to by itself.
        own = old.ref.repo if "@" not in str(merged) else None
        options = replace(options, push=options.push.by_default(own or old.recipe.repo_id))
    return Addition(old, entries, output, options, from_experts)


def refuse_strangers(old: EarlierMerge, output: OutputFolder, brought: Collection[str] | None) -> None:
    """Files that are nobody's but the user's, in a folder that would be replaced; ``brought`` as ``strangers`` has it.

    Raises OutputError.
    """
    if output.grows and not output.overwrite and (strangers := old.strangers(brought)):
        what = f"is replaced as a whole, and holds files that are not of the merge: {', '.join(strangers[:5])}"
        remedy = "Move them away, choose another folder with -o, or let them go with --overwrite."
        raise OutputError(f"cannot replace {old.ref.short}", [Problem(str(output.path), what, remedy)])


def _own_folder(old: EarlierMerge) -> Path:
    """The folder as it was named, so that messages name it that way; where it is, if that is but ``.`` or a link."""
    named = Path(old.ref.text)
    return old.folder if named.is_symlink() or named.name in ("", "..") else named


def _entries(old: EarlierMerge, experts: Sequence[str], parameters: Mapping[str, Any]) -> tuple[ModelEntry, ...]:
    """The new models as entries of the recipe. Raises RecipeError for what cannot be one, or is not new."""
    problems: list[Problem] = []
    entries: list[ModelEntry] = []
    own = {name: value for name, value in parameters.items() if name not in old.recipe.parameters.companions}
    companions = _companions({name: value for name, value in parameters.items() if name not in own}, problems)
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
        entries.append(ModelEntry(model=ref, parameters=own, companions=companions))
    problems += _parameter_problems(old.recipe, parameters, len(experts))
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
    if method.needs_state and not old.state.kept and not from_experts:
        what = f"{method.name} goes on from sums over the earlier models, and {old.ref.short} does not hold them"
        remedy = "Read the earlier models again with --from-experts. `dopkit run --keep-state` keeps the sums."
        return [Problem("", what, remedy)]
    others = [one.method for one in old.recipe.overrides if not one.method.grows]
    method = others[0] if others else method
    if not method.grows and not from_experts:
        what = f"{method.name} merges all models at once: what was merged does not tell what went in"
        return [Problem("", what, _AGAIN)]
    if not from_experts and _made_of_all(old.recipe.tokenizer, old.recipe.base_model):
        what = "what its new tokens begin with depends on all models, and the merged weights do not tell"
        return [Problem("", what, _AGAIN)]
    return []


_AGAIN = "Read the earlier models again with --from-experts."


def _made_of_all(tokenizer: TokenizerSettings | None, base: ModelRef | None) -> bool:
    """Whether there are tokens whose rows come from several models: not with the base's own tokens alone."""
    return tokenizer is not None and (tokenizer.source != "base" or base is None or bool(tokenizer.tokens))


def _companions(named: Mapping[str, Any], problems: list[Problem]) -> dict[str, ModelRef]:
    """What parameters name that is read beside the new model, and problems."""
    found = {}
    for name, value in named.items():
        try:
            found[name] = replace(refs.parse(str(value), Path()), part=name)
        except ValueError as error:
            problems.append(Problem(name, str(error)))
    return found


def _parameter_problems(recipe: Recipe, parameters: Mapping[str, Any], models: int) -> list[Problem]:
    """What keeps these from being parameters of a single model, of which so many are new."""
    kind = recipe.method.parameters
    if missing := sorted(kind.required - parameters.keys() - recipe.parameters.given().keys()):
        return [Problem(name, f"is missing: {recipe.method.name} needs one for every model", f"Say --set {name}=...")
                for name in missing]  # fmt: skip
    if models > 1 and kind.companions:
        what = f"each model has a {', '.join(sorted(kind.companions))} of its own"
        return [Problem("", what, "Add one model after another.")]
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


def refuse_other_models(wanted: Addition, plan: Plan) -> None:
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
        if old.recipe.method.skips_base and source.ref.key == plan.donor.ref.key:  # nor would its recipe read it again
            what = f"is the base: its task vector is zero, and {old.recipe.merge_method} leaves it out"
            problems.append(Problem(source.ref.short, what))
        elif source.identity in known:
            what = f"is in {old.ref.short} already, as {known[source.identity]}: the same weights"
            problems.append(Problem(source.ref.short, what))
        known[source.identity] = source.ref.short
    if problems:
        raise PlanError(f"cannot add to {old.ref.short}: {count(len(problems), 'problem')}", problems)
