"""Every model opened, the plan made: what stands before a merge, or before a plan that is only shown.

Writes nothing but an empty journal, and that only when weights are about to be downloaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dopkit import hub, pinning, publishing
from dopkit.checkpoints import Checkpoint
from dopkit.device import Devices, choose
from dopkit.engine.equality import check_equal
from dopkit.errors import PlanError, count
from dopkit.measure import available_bytes
from dopkit.opening import look_at_all, merged_twice, open_all
from dopkit.planning import Plan
from dopkit.planning.building import Room, build
from dopkit.planning.matching import Model
from dopkit.progress import Progress
from dopkit.recipe import Recipe
from dopkit.writer import Journal, OutputFolder


@dataclass(frozen=True)
class Options:
    """How to run, as opposed to what to merge: none of it but the device changes a byte of the weights."""

    device: str = "auto"  # auto, cpu, cuda, cuda:N, mps
    max_memory: int | None = None  # bytes; None is what is free
    max_shard_size: int = 5_000_000_000  # bytes
    overwrite: bool = False  # replace an output folder that dopkit made
    stream: bool = False  # read the weights over the network while merging, and store none of them
    push: publishing.PushOptions | None = None  # publish what was merged

    @property
    def frees(self) -> bool:
        """Whether each shard leaves the disk once it is on the Hub."""
        return self.stream and self.push is not None


@dataclass
class Prepared:
    """Opened sources and the plan made from them."""

    recipe: Recipe  # as it was given, its order drawn
    plan: Plan
    donor: Checkpoint
    models: Sequence[Checkpoint]
    donor_model: Model
    devices: Devices
    output: OutputFolder

    @cached_property
    def fingerprint(self) -> str:
        return self.plan.fingerprint(self.devices.engine)

    def open_journal(self) -> Journal:
        """The journal in the working folder, both made if they are not there."""
        pins = pinning.to_remember(self.recipe, self.plan.recipe)
        return Journal(self.output.prepare(), self.fingerprint, self.output.overwrite, pins)


@contextmanager
def prepare(
    recipe: Recipe, out: str | Path | None, options: Options, progress: Progress, download: bool = False
) -> Iterator[Prepared]:
    seed = (recipe.seed or 0) if recipe.order == "shuffle" else None
    given = recipe = recipe.drawn()
    devices = choose(options.device)
    output = OutputFolder(Path(out) if out is not None else Path(recipe.name), options.overwrite)
    with ExitStack() as stack:
        pins = pinning.remembered(recipe, output)
        if pins:
            progress.note("continuing an unfinished merge at the commits it began with (--overwrite begins anew)")
        obstacles = [obstacle] if (obstacle := output.obstacle()) else []
        if options.push:
            obstacles += publishing.obstacles(recipe.refs, options.push.by_default(recipe.repo_id))
        opened, problems = open_all(recipe, pins, progress, download and not obstacles)
        problems += obstacles
        for checkpoint in opened.values():
            stack.callback(checkpoint.close)
        if len(opened) < len(recipe.refs):  # without every header there is nothing to compare
            raise PlanError(f"cannot merge: {count(len(problems), 'problem')}", problems)
        recipe = recipe.with_refs({ref: checkpoint.ref for ref, checkpoint in opened.items()})
        problems += merged_twice(recipe)
        checkpoints = {checkpoint.ref: checkpoint for checkpoint in opened.values()}
        models = look_at_all(checkpoints, recipe.donor)
        in_order = [entry.model for entry in recipe.models]
        made = build(
            recipe,
            models[recipe.donor],
            [models[ref] for ref in in_order],
            _room(output, options),
            options.max_shard_size,
            seed,
            problems,
            options.stream,
        )
        if made.streamed:
            checkpoints = {ref: checkpoint.streamed() for ref, checkpoint in checkpoints.items()}
            for checkpoint in checkpoints.values():
                stack.callback(checkpoint.close)
        yield Prepared(
            given,
            made,
            checkpoints[recipe.donor],
            [checkpoints[ref] for ref in in_order],
            models[recipe.donor],
            devices,
            output,
        )


def _room(output: OutputFolder, options: Options) -> Room:
    memory = available_bytes()
    if options.max_memory is not None:
        memory = min(memory, options.max_memory)
    cache, same = hub.cache_disk(output.free_location())
    given = options.max_memory is not None
    return Room(output.free_bytes(), cache, memory, output.bytes_written(), same, given, options.frees)


def fetch(prepared: Prepared, progress: Progress) -> None:
    """Download what is not here yet; of the output nothing is written but an empty journal."""
    if prepared.plan.download_bytes and not prepared.plan.streamed:
        prepared.open_journal().close()  # remembers the commits, should the download break and a branch move
        progress.stage("downloading")
    for checkpoint in dict.fromkeys([prepared.donor, *prepared.models]):
        checkpoint.fetch()


def compare_values(prepared: Prepared) -> None:
    """Refuse what no header tells: integers that differ, tied tensors that do not agree. Few and small, as a rule."""
    if problems := check_equal(prepared.plan, prepared.donor, prepared.models):
        raise PlanError(f"cannot merge: {count(len(problems), 'problem')}", problems)
