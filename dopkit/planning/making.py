"""The jobs of a plan: which rule each tensor of the result gets, with which parameters, from which inputs.

Every tensor of every model is accounted for. What is merged from slices of layers is laid out by ``slicing``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pydantic import ValidationError

from dopkit import methods
from dopkit.errors import Problem
from dopkit.methods.parameters import Parameters
from dopkit.planning import Dropped, Input, TensorJob, matching, settled
from dopkit.planning import heads as planned_heads
from dopkit.planning.matching import Model
from dopkit.planning.slicing import layers_taken, sliced_targets
from dopkit.planning.targets import Making, Settings, Target
from dopkit.recipe import Recipe
from dopkit.recipe.settings import Place
from dopkit.recipe.wording import wrong_value
from dopkit.specs import DTYPES, MERGEABLE

_NAMES = {dtype.torch: name for name, dtype in DTYPES.items()}


def make_jobs(work: Making) -> None:
    """Match the models tensor by tensor, and give each tensor of the result its job; or the problems."""
    if work.recipe.heads == "per-task":
        _keep_heads(work)
    work.recipe, notes = settled.copy_unread(work.recipe, work.donor, work.models)
    work.notes += notes
    if not work.recipe.parts:
        _match(work)
        return
    targets = sliced_targets(work)
    work.layers = {} if work.problems else layers_taken(work)
    work.problems += matching.idle_patterns(work.recipe, (work.donor, *work.models))
    for target in targets if not work.problems else ():
        add_job(work, target, "copy" if matching.matches(target.canonical, work.recipe.copied) else None)


def _keep_heads(work: Making) -> None:
    """Set apart what is copied beside the merged backbone."""
    before = work.continues
    earlier = [source.ref for source in before.earlier] if before else []
    work.heads = planned_heads.kept_heads(work.donor, work.models, earlier, before.heads if before else ())
    if not work.continues:
        work.problems += planned_heads.problems(work.heads, work.donor, work.models)


def _match(work: Making) -> None:
    """Account for every tensor of every model, and give each output tensor its rule."""
    recipe, donor = work.recipe, work.donor
    names = donor.names
    found = {canonical: settled.why_fixed(recipe, donor, canonical, name) for canonical, name in names.items()}
    fixed = {canonical: why for canonical, why in found.items() if why}
    if counters := [why for why in fixed.values() if why == settled.COUNTER]:
        work.notes.append(settled.counters_note(donor, len(counters)))
    read = {canonical: name for canonical, name in names.items() if canonical not in fixed}
    work.dropped += donor.left_out()
    for model in work.models:
        if model.source.ref.key != donor.source.ref.key:
            work.dropped += model.left_out()
        _compare(work, model, read, fixed)
    work.problems += matching.idle_patterns(recipe, (donor, *work.models))
    if not work.problems:
        for canonical, name in sorted(names.items(), key=lambda pair: _place(donor, pair[1])):
            if fixed.get(canonical) in ("heads: drop", "heads: per-task"):
                if name not in _kept(work, donor):
                    work.dropped.append(Dropped(donor.source.ref, name, fixed[canonical]))
            else:
                add_job(work, _target(work, canonical, name), fixed.get(canonical))


def _compare(work: Making, model: Model, read: dict[str, str], fixed: dict[str, str]) -> None:
    """One model against the donor: problems, and what of it is left unread."""
    donor = work.donor
    kept, extra, needed = _kept(work, model), [], []
    for canonical, name in model.names.items():
        if canonical in read or name in kept:
            continue
        why = fixed.get(canonical) or settled.why_fixed(work.recipe, model, canonical, name)
        if why == "copy" and kept and canonical not in donor.names and name not in model.skeleton.unknown:
            needed.append(name)
        elif why:
            work.dropped.append(Dropped(model.source.ref, name, why))
        else:
            extra.append(name)
    pairs = {name: own for canonical, name in read.items() if (own := model.holder(canonical))}
    missing = [name for canonical, name in read.items() if name not in pairs]
    other = matching.other_layout(donor, model, missing, extra)
    cut = {name for pair in other for name in pair}
    work.notes += matching.twin_notes(model, read)
    problems = [
        *matching.layout_problems(donor, model, other),
        *matching.missing_problems(donor, model, [name for name in missing if name not in cut]),
        *matching.extra_problems(donor, model, [name for name in extra if name not in cut]),
        *matching.needed_problems(donor, model, needed),
        *matching.shape_problems(donor, model, pairs),
        *matching.dtype_problems(donor, model, pairs),
    ]
    if problems and (stranger := matching.stranger_problem(donor, model)):
        problems = [stranger]  # the one cause instead of its many effects
    work.problems += problems


def _kept(work: Making, model: Model) -> set[str]:
    """The tensors of a model that are copied with its head."""
    return {spec.name for head in work.heads if head.ref.key == model.source.ref.key for spec in head.tensors}


def _target(work: Making, canonical: str, name: str) -> Target:
    """A tensor that every model has, and the donor in its place."""
    holders = [(index, model.holder(canonical)) for index, model in enumerate(work.models)]
    inputs = [Input(index, own) for index, own in holders if own]
    return Target(
        _spelling(work, canonical, name),
        canonical,
        (work.donor, name),
        work.donor.skeleton.roles[name].standing.depth,
        name,
        tuple((one, (work.recipe.models[one.model].parameters,)) for one in inputs),
    )


def add_job(work: Making, target: Target, fixed: str | None) -> None:
    """Give a tensor its rule and its parameters. ``fixed`` says why it is taken from the base, if it is."""
    recipe, (model, name) = work.recipe, target.like
    spec, role = model.specs[name], model.role(name)
    place = Place(tuple(dict.fromkeys((target.canonical, target.name))), target.depth)
    own: list[Parameters] = []
    if fixed:
        rule = methods.BASE
    elif spec.dtype not in MERGEABLE:
        rule = methods.EQUAL
    else:
        found = [_parameters(work, target, place, levels) for levels in ((), *(own for _, own in target.inputs))]
        if None in found:
            return
        wide, *own = [one for one in found if one is not None]
        rule = (recipe.override_at(place) or recipe).method.rule_for(wide, target.canonical, role, spec.shape)
        if rule.fold and recipe.base_model is None:
            rule = replace(rule, needs_base=False)  # of a method that has a use for a base, but needs none
    needs_base = rule.needs_base or scaled(recipe)
    if needs_base and target.base is None:
        work.problems.append(_no_base(work, target, rule))
        return
    work.jobs.append(
        TensorJob(
            name=target.name,
            canonical=target.canonical,
            role=role,
            rule=rule,
            dtype=_out_dtype(recipe, spec.dtype),
            shape=spec.shape,
            inputs=() if rule is methods.BASE else tuple(one for one, _ in target.inputs),
            base=target.base if needs_base else None,
            donor=target.base or "",
            parameters=tuple(own),
            earlier=_earlier(work.continues.recipe, place) if work.continues and rule.fold else (),
        )
    )


def scaled(recipe: Recipe) -> bool:
    """Whether every merged task vector is multiplied at the end, so that the base is read for all of them."""
    return recipe.method.scale_of(recipe.parameters) not in (None, 1)


def _parameters(work: Making, target: Target, place: Place, levels: Sequence[Settings]) -> Parameters | None:
    """What is in force for one tensor; None and a problem where that makes no sense together."""
    try:
        found = work.recipe.parameters_at(place, *levels)
    except ValidationError as error:
        work.problems.append(Problem(target.canonical, why_wrong(error)))
        return None
    needed = sorted(found.required - found.companions) if levels else []
    lacking = [name for name in needed if found.in_force().get(name) is None]
    work.problems += [Problem(target.canonical, _untaken(name)) for name in lacking]
    return None if lacking else found


def why_wrong(error: ValidationError) -> str:
    """What is wrong with the parameters of one tensor, seen together."""
    detail = error.errors()[0]
    key = detail["loc"][-1] if detail["loc"] else ""
    if detail["type"] == "missing":
        return _untaken(str(key))
    return wrong_value(detail)


def _untaken(name: str) -> str:
    return f"no filter of {name!r} takes it in; add an entry without a filter"


def _earlier(recipe: Recipe, place: Place) -> tuple[Parameters, ...]:
    """What was in force for each model that was merged before."""
    return tuple(recipe.parameters_at(place, entry.parameters) for entry in recipe.models)


def _no_base(work: Making, target: Target, rule: methods.Rule) -> Problem:
    what = f"its rule ({rule.name}) reads the base, and the slice says nothing of the base's layers"
    return Problem(target.canonical, what, f"Name {work.donor.source.ref.short} among the sources of every slice.")


def _spelling(work: Making, canonical: str, name: str) -> str:
    """The donor's, but that of the models where they are a tower of it: they lie in files of such a tower."""
    return work.models[0].names.get(canonical, name) if work.donor.beside else name


def _out_dtype(recipe: Recipe, own: str) -> str:
    wanted = recipe.out_dtype or recipe.dtype
    return _NAMES[wanted] if wanted and own in MERGEABLE else own


def _place(donor: Model, name: str) -> tuple[str, int]:
    """Tensors are written in the order in which they lie in the donor's files."""
    spec = donor.specs[name]
    return spec.file, spec.offset
