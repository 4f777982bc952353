"""Everything before a merge of adapters: each opened from its headers, what cannot be refused, the plan made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from dopkit import pinning, publishing
from dopkit.adapting.planning import planned
from dopkit.checkpoints import AdapterCheckpoint
from dopkit.checkpoints.joining import Joined, join
from dopkit.errors import PlanError, Problem, count
from dopkit.measure import available_bytes
from dopkit.methods.coefficients import coefficients
from dopkit.opening import merged_twice, open_all
from dopkit.planning import Plan
from dopkit.preparing import Options
from dopkit.progress import Progress
from dopkit.recipe import Recipe
from dopkit.units import show_size
from dopkit.writer import OutputFolder


@dataclass(frozen=True)
class Prepared:
    plan: Plan
    adapters: Sequence[AdapterCheckpoint]
    weights: Sequence[float]  # of every adapter's task vector
    modules: Sequence[Joined]


@contextmanager
def prepared(
    recipe: Recipe, output: OutputFolder, options: Options, progress: Progress, download: bool = False
) -> Iterator[Prepared]:
    seed = (recipe.seed or 0) if recipe.order == "shuffle" else None
    recipe = recipe.drawn()
    pins = pinning.remembered(recipe, output)
    with ExitStack() as stack:
        opened, problems = open_all(recipe, pins, progress, download)
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
        weights: list[float] = []
        try:
            weights = coefficients(recipe.merge_method, [recipe.parameters_for(at) for at in range(len(recipe.models))])
        except ValueError as error:
            problems.append(Problem("output: adapter", str(error), "Leave it out: the result is then a whole model."))
        modules: list[Joined] = []
        if not problems:
            modules, problems = join(adapters, recipe.rank)
        if problems:
            raise PlanError(f"cannot merge: {count(len(problems), 'problem')}", problems)
        made = planned(recipe, adapters, modules, seed)
        memory = min(available_bytes(), options.max_memory or available_bytes())
        room = (("disk space", made.disk_bytes, output.free_bytes()), ("memory", made.memory_bytes, memory))
        short = [
            Problem("", f"too little {what}: {show_size(need)} needed, {show_size(have)} there")
            for what, need, have in room
            if need > have
        ]
        if short:
            raise PlanError(f"cannot merge: {count(len(short), 'problem')}", short)
        yield Prepared(made, adapters, weights, modules)


def _without_effect(recipe: Recipe, options: Options) -> Iterator[Problem]:
    """What is asked for that goes with whole models alone."""
    asked = {
        "heads": recipe.heads is not None,
        "copy": bool(recipe.copied),
        "--stream": options.stream,
        "--device": options.device not in ("auto", "cpu"),
        "--save-steps": options.save_steps,
        "--keep-state": options.keep_state,
        "--tasks": options.tasks is not None,
    }
    for name, given in asked.items():
        if given:
            yield Problem(name, "does not go with `output: adapter`", "Leave it out.")


def _other_base(recipe: Recipe, adapters: Sequence[AdapterCheckpoint]) -> Iterator[Problem]:
    for adapter in adapters:
        if recipe.base_model is not None and adapter.base.ref.key != recipe.base_model.key:
            yield Problem(adapter.ref.short, f"stands on another base than {recipe.base_model.short}")
