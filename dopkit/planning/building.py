"""From recipe, headers and roles to a plan, or to every reason why there is none. A pure function.

What must be looked at outside (free disk, memory, the output folder) comes in as numbers and problems.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from dopkit import layout, methods
from dopkit.errors import PlanError, Problem, count
from dopkit.planning import Continuation, Dropped, Head, Plan, TensorJob, matching, streaming
from dopkit.planning import heads as planned_heads
from dopkit.planning.adapters import adapter_bytes
from dopkit.planning.matching import Model
from dopkit.recipe import Recipe
from dopkit.roles import Role
from dopkit.specs import DTYPES, MERGEABLE
from dopkit.units import show_size

_NAMES = {dtype.torch: name for name, dtype in DTYPES.items()}

READ_AHEAD_BYTES = 32_000_000  # raw tensors waiting for their turn, besides the one in hand
WRITE_BEHIND_BYTES = 32_000_000  # finished blocks waiting for the disk
# What the program takes besides when it starts to merge: code pages, buffers of libraries. Measured, not derived.
OVERHEAD_BYTES = 80_000_000
_AROUND_A_JOB = READ_AHEAD_BYTES + WRITE_BEHIND_BYTES + OVERHEAD_BYTES


@dataclass(frozen=True)
class Room:
    """What the machine has to offer, in bytes. ``written`` is what an unfinished run left that is still good."""

    disk: int
    cache_disk: int
    memory: int
    written: int = 0
    shared_disk: bool = False  # output and download cache lie on one disk
    memory_given: bool = False  # the memory is what the user allows, so all of it may be used
    shards_leave: bool = False  # a finished shard is uploaded and removed while the next one is made


@dataclass(frozen=True)
class Wanted:
    """What a merge writes beside the model, and what it goes on from."""

    steps: bool = False  # the models of earlier steps
    state: bool = False  # of every fold
    continues: Continuation | None = None


@dataclass
class _Building:
    """A plan in the making."""

    recipe: Recipe
    donor: Model
    models: Sequence[Model]
    jobs: list[TensorJob] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    heads: tuple[Head, ...] = ()
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def build(
    recipe: Recipe,
    donor: Model,
    models: Sequence[Model],
    room: Room,
    max_shard_size: int,
    seed: int | None = None,
    problems: Sequence[Problem] = (),
    stream: bool = False,
    wanted: Wanted | None = None,
) -> Plan:
    """Make the plan of a pinned recipe whose models stand in merge order.

    ``problems`` are those found while opening; ``stream`` asks that nothing be downloaded; ``wanted`` is what there is
    to write besides, and to go on from. Raises PlanError with all of them and all found here.
    """
    wanted = wanted or Wanted()
    work = _Building(recipe, donor, models, problems=list(problems))
    for model in {model.source.ref.key: model for model in (donor, *models)}.values():
        work.problems += matching.own_problems(model)
        work.notes += model.source.notes
        if model.skeleton.fallback:
            work.notes.append(f"{model.source.ref.short}: roles are guessed from names ({model.skeleton.fallback})")
    if donor.beside:
        work.notes.append(f"{donor.source.ref.short}: read as the {donor.skeleton.class_name} in it")
    if not donor.source.complete:
        what = "offline, so tokenizer and other side files that are not in the cache are left out"
        work.notes.append(f"{donor.source.ref.short}: {what}")
    if wanted.state and not recipe.method.grows:
        what = f"{recipe.merge_method} merges all models at once: it keeps no state to go on from"
        work.problems.append(Problem("", what, "Leave out --keep-state."))
    if not work.problems:
        if recipe.heads == "per-task":
            _keep_heads(work, wanted.continues)
        _copy_unread(work)
        _match(work)
    if recipe.dtype and recipe.out_dtype and recipe.dtype not in ("float32", recipe.out_dtype):
        work.notes.append(f"arithmetic is in float32; `dtype: {recipe.dtype}` gives way to `out_dtype`")
    ordered = sorted(work.jobs, key=lambda job: _place(work.donor, job))
    shards = layout.lay_out([(job.name, job.dtype, job.shape) for job in ordered], max_shard_size)
    by_name = {job.name: job for job in ordered}
    plan = Plan(
        recipe=work.recipe,
        seed=seed,
        donor=donor.source,
        models=tuple(model.source for model in models),
        jobs=tuple(by_name[tensor.name] for shard in shards for tensor in shard.tensors),
        shards=shards,
        dropped=tuple(work.dropped),
        notes=tuple(work.notes),
        max_shard_size=max_shard_size,
        memory_bytes=max((job.working_bytes + adapter_bytes(models, job) for job in ordered), default=0)
        + _AROUND_A_JOB,
        keeps_steps=wanted.steps,
        keeps_state=wanted.state,
        continues=wanted.continues,
        heads=work.heads,
    )
    cache_disk = room.disk - plan.disk_bytes + room.written if room.shared_disk else room.cache_disk
    stream_room = streaming.StreamRoom(cache_disk, room.memory, room.memory_given)
    plan = streaming.decide(plan, (donor, *models), stream_room, stream)
    work.problems += _room_problems(plan, room)
    if not work.problems and not plan.jobs:
        work.problems.append(Problem("", "there is nothing to merge: the base holds no tensors"))
    if work.problems:
        raise PlanError(f"cannot merge: {count(len(work.problems), 'problem')}", work.problems)
    return plan


def _keep_heads(work: _Building, continues: Continuation | None) -> None:
    """Set apart what is copied beside the merged backbone."""
    earlier = [source.ref for source in continues.earlier] if continues else []
    work.heads = planned_heads.kept_heads(work.donor, work.models, earlier)
    if not continues:
        work.problems += planned_heads.problems(work.heads, work.donor, work.models)


def _match(work: _Building) -> None:
    """Account for every tensor of every model, and give each output tensor its rule."""
    recipe, donor = work.recipe, work.donor
    names = donor.names
    fixed = {canonical: why for canonical, name in names.items() if (why := _fixed(recipe, donor, canonical, name))}
    read = {canonical: name for canonical, name in names.items() if canonical not in fixed}
    work.dropped += donor.left_out()
    for model in work.models:
        if model.source.ref.key != donor.source.ref.key:
            work.dropped += model.left_out()
        _compare(work, model, read, fixed)
    work.problems += matching.idle_patterns(recipe, (donor, *work.models))
    if not work.problems:
        for canonical, name in names.items():
            _plan_tensor(work, canonical, name, fixed.get(canonical))


def _copy_unread(work: _Building) -> None:
    """Take a pooler from the donor that its own class does not read and no model holds: the backbone's class wants it.

    The recipe of the result says so, for a merge that goes on from it.
    """
    donor, copied = work.donor, work.recipe.copied
    unread = sorted(donor.skeleton.unread - {donor.names.get(name) for model in work.models for name in model.names})
    names = [donor.skeleton.roles[name].canonical for name in unread]
    if more := [name for name in names if not matching.matches(name, copied)]:
        work.recipe = work.recipe.model_copy(update={"copied": (*copied, *more)})
        what = f"no model holds {', '.join(more)} of its backbone: kept as in the base, as with `copy`"
        work.notes.append(f"{donor.source.ref.short}: {what}")


def _fixed(recipe: Recipe, model: Model, canonical: str, name: str) -> str | None:
    """The key of the recipe that takes this tensor of a model out of the merge, if one does."""
    if model.role(name) is Role.HEAD and recipe.heads:
        return f"heads: {recipe.heads}"
    return "copy" if matching.matches(canonical, recipe.copied) else None


def _compare(work: _Building, model: Model, read: dict[str, str], fixed: dict[str, str]) -> None:
    """One model against the donor: problems, and what of it is left unread."""
    donor = work.donor
    kept, extra, needed = _kept(work, model), [], []
    for canonical, name in model.names.items():
        if canonical in read or name in kept:
            continue
        why = fixed.get(canonical) or _fixed(work.recipe, model, canonical, name)
        if why == "copy" and kept and canonical not in donor.names and name not in model.skeleton.unknown:
            needed.append(name)
        elif why:
            work.dropped.append(Dropped(model.source.ref, name, why))
        else:
            extra.append(name)
    pairs = {name: model.names[canonical] for canonical, name in read.items() if canonical in model.names}
    problems = [
        *matching.missing_problems(donor, model, read),
        *matching.extra_problems(donor, model, extra),
        *matching.needed_problems(donor, model, needed),
        *matching.shape_problems(donor, model, pairs),
        *matching.dtype_problems(donor, model, pairs),
    ]
    if problems and (stranger := matching.stranger_problem(donor, model)):
        problems = [stranger]  # the one cause instead of its many effects
    work.problems += problems


def _kept(work: _Building, model: Model) -> set[str]:
    """The tensors of a model that are copied with its head."""
    return {spec.name for head in work.heads if head.ref.key == model.source.ref.key for spec in head.tensors}


def _plan_tensor(work: _Building, canonical: str, name: str, fixed: str | None) -> None:
    donor, recipe = work.donor, work.recipe
    spec, role = donor.specs[name], donor.role(name)
    if fixed in ("heads: drop", "heads: per-task"):
        if name not in _kept(work, donor):
            work.dropped.append(Dropped(donor.source.ref, name, fixed))
        return
    if fixed:
        rule = methods.BASE
    elif spec.dtype not in MERGEABLE:
        rule = methods.EQUAL
    else:
        rule = recipe.method.rule_for(recipe.parameters, canonical, role, spec.shape)
        if rule.fold and recipe.base_model is None:
            rule = replace(rule, needs_base=False)  # of a method that has a use for a base, but needs none
    work.jobs.append(
        TensorJob(
            name=_spelling(work, canonical, name),
            canonical=canonical,
            role=role,
            rule=rule,
            dtype=_out_dtype(recipe, spec.dtype),
            shape=spec.shape,
            names=() if rule is methods.BASE else tuple(model.names[canonical] for model in work.models),
            base=name if rule.needs_base or _scaled(recipe) else None,
            donor=name,
        )
    )


def _spelling(work: _Building, canonical: str, name: str) -> str:
    """The donor's, but that of the models where they are a tower of it: they lie in files of such a tower."""
    return work.models[0].names.get(canonical, name) if work.donor.beside else name


def _scaled(recipe: Recipe) -> bool:
    """Whether every merged task vector is multiplied at the end, so that the base is read for all of them."""
    return recipe.method.scale_of(recipe.parameters) not in (None, 1)


def _out_dtype(recipe: Recipe, own: str) -> str:
    wanted = recipe.out_dtype or recipe.dtype
    return _NAMES[wanted] if wanted and own in MERGEABLE else own


def _place(donor: Model, job: TensorJob) -> tuple[str, int]:
    """Tensors are written in the order in which they lie in the donor's files."""
    spec = donor.specs[job.donor]
    return spec.file, spec.offset


def _room_problems(plan: Plan, room: Room) -> list[Problem]:
    problems = []
    largest_two = sum(sorted((shard.size for shard in plan.shards), reverse=True)[:2])
    output = (largest_two if room.shards_leave else plan.disk_bytes) - room.written
    state = plan.continues.download_bytes if plan.continues else 0
    download = state if plan.streamed else plan.download_bytes
    if room.shared_disk:
        output, download = output + download, 0
    if output > room.disk:
        problems.append(
            _too_little("disk space for the output", output, room.disk, "Free some, or write elsewhere with -o.")
        )
    if download > room.cache_disk:
        problems.append(
            _too_little("disk space for downloads", download, room.cache_disk, "Free some, or set HF_HOME.")
        )
    if plan.memory_bytes > room.memory:
        largest = max(plan.jobs, key=lambda job: job.working_bytes)
        what = "memory (the largest need is for " + largest.name + ")"
        problems.append(
            _too_little(what, plan.memory_bytes, room.memory, "Raise --max-memory, or use a larger machine.")
        )
    return problems


def _too_little(what: str, need: int, have: int, remedy: str) -> Problem:
    return Problem("", f"too little {what}: {show_size(need)} needed, {show_size(have)} there", remedy)
