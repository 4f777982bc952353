"""Everything before a merge of adapters: each opened from its headers, what is refused, the plan made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from dopkit import hub, pinning, publishing
from dopkit.adapting.planning import planned
from dopkit.adapting.ways import Way, find_ways, obstacles
from dopkit.checkpoints import AdapterCheckpoint
from dopkit.checkpoints.adapter import other_base
from dopkit.checkpoints.joining import Joined, join
from dopkit.errors import PlanError, Problem, count
from dopkit.measure import resident_bytes
from dopkit.opening import merged_twice, open_all
from dopkit.planning import Continuation, Plan
from dopkit.planning.matching import idle_among
from dopkit.planning.room import Room, disk_problems, too_little_memory
from dopkit.preparing import Options, host_bytes
from dopkit.progress import Progress
from dopkit.receipt import Receipt
from dopkit.recipe import Recipe
from dopkit.writer import OutputFolder


@dataclass(frozen=True)
class Grown:
    """What a merge knows that adds to an earlier one, whose adapter is the first of its recipe."""

    continues: Continuation | None  # None when every earlier adapter is read again
    receipt: Receipt | None  # the earlier one's
    check: Callable[[Plan], None]  # raises PlanError for what cannot be added


@dataclass(frozen=True)
class Prepared:
    plan: Plan
    adapters: Sequence[AdapterCheckpoint]
    modules: Sequence[Joined]  # that are in the result
    ways: Mapping[str, Way]  # by module


@contextmanager
def prepared(
    recipe: Recipe,
    output: OutputFolder,
    options: Options,
    progress: Progress,
    download: bool = False,
    grown: Grown | None = None,
) -> Iterator[Prepared]:
    """Open, judge and plan. Raises PlanError with all problems at once."""
    seed = (recipe.seed or 0) if recipe.order == "shuffle" else None
    recipe = recipe.drawn()
    before = grown.continues if grown else None
    progress.stage("reading headers")
    with ExitStack() as stack:
        opened, problems = open_all(recipe, pinning.remembered(recipe, output), progress, download)
        problems += _without_effect(recipe, options)
        if options.push is not None:
            problems += publishing.obstacles(recipe.refs, options.push.by_default(recipe.repo_id))
        problems += [obstacle] if (obstacle := output.obstacle()) else []
        for checkpoint in opened.values():
            stack.callback(checkpoint.close)
        if len(opened) == len(recipe.refs):
            recipe = recipe.with_refs({ref: checkpoint.ref for ref, checkpoint in opened.items()})
            problems += merged_twice(recipe)
        by_key = {checkpoint.ref.key: checkpoint for checkpoint in opened.values()}
        models = [by_key[entry.model.key] for entry in recipe.models if entry.model.key in by_key]
        adapters = [model for model in models if isinstance(model, AdapterCheckpoint)]
        problems += [Problem(model.ref.short, "is no adapter") for model in models if model not in adapters]
        problems += _other_base(recipe, adapters)
        problems += obstacles(recipe)
        if adapters:
            names = adapters[0].base.names
            problems += idle_among(recipe, map(names.canonical, names.specs), names.specs)
        modules: list[Joined] = []
        if not problems:
            modules, problems = join(adapters, recipe.rank)
        _refuse(problems)
        if recipe.base_model is None:  # what the adapters name themselves
            recipe = recipe.model_copy(update={"base_model": adapters[0].base.ref})
        ways, problems = find_ways(modules, recipe, before, adapters[0].base.names)
        _refuse(problems)
        made = planned(recipe, adapters, modules, ways, seed, before, resident_bytes())
        if not made.jobs:
            _refuse([Problem("other: base", "leaves every module as it is in the base: nothing would be merged")])
        _refuse(_no_room(made, output, options))
        if grown:
            grown.check(made)
        if download:  # a plan that is shown has notes; here no weight of the base tells whether it is the right one
            for adapter in adapters:
                for note in other_base(adapter.lora, adapter.base):
                    progress.note(f"{adapter.ref.short}: {note}")
        merged = {module: way for module, way in ways.items() if way is not None}
        yield Prepared(made, adapters, [joined for joined in modules if joined.module in merged], merged)


def _refuse(problems: list[Problem]) -> None:
    if problems:
        raise PlanError(f"cannot merge: {count(len(problems), 'problem')}", problems)


def _no_room(made: Plan, output: OutputFolder, options: Options) -> list[Problem]:
    cache, same = hub.cache_disk(output.free_location())
    room = Room(
        disk=output.free_bytes(),
        cache_disk=cache,
        memory=host_bytes(options.limit),
        written=output.bytes_written(),
        shared_disk=same,
        memory_given=options.limit.host is not None,
        program=made.program_bytes,
    )
    problems = disk_problems(made, room)
    if made.memory_bytes > room.memory:
        problems.append(too_little_memory("the factors of one module are in hand at a time", made.memory_bytes, room))
    return problems


def _without_effect(recipe: Recipe, options: Options) -> Iterator[Problem]:
    """What is asked for that goes with whole models alone."""
    asked = {
        "heads": recipe.heads is not None,
        "copy": bool(recipe.copied),
        "tokenizer": recipe.tokenizer is not None,
        "chat_template": recipe.chat_template is not None,
        "--stream": options.stream,
        "--device": options.device not in ("auto", "cpu"),
        "--save-steps": options.save_steps,
        "--keep-state": options.keep_state,
        "--keep-stages": options.keep_stages,
        "--tasks": options.tasks is not None,
    }
    for name, given in asked.items():
        if given:
            yield Problem(name, "does not go with `output: adapter`", "Leave it out.")


def _other_base(recipe: Recipe, adapters: Sequence[AdapterCheckpoint]) -> Iterator[Problem]:
    for adapter in adapters:
        if recipe.base_model is not None and adapter.base.ref.key != recipe.base_model.key:
            yield Problem(adapter.ref.short, f"stands on another base than {recipe.base_model.short}")
