"""A merge from recipe to folder: the steps in order, nothing else.

Each step lives in a module of its own. Nothing is printed; ``Progress`` is told what happens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dopkit import assembly, card, hub, pinning, publishing, receipt, skeleton, verification
from dopkit.checkpoints import Checkpoint
from dopkit.device import Devices, choose
from dopkit.engine import Engine
from dopkit.engine.equality import check_equal
from dopkit.errors import PlanError, count
from dopkit.measure import available_bytes, peak_resident_bytes, resident_bytes
from dopkit.opening import look_at_all, merged_twice, open_all
from dopkit.planning import Plan
from dopkit.planning.building import Room, build
from dopkit.planning.matching import Model
from dopkit.progress import Progress
from dopkit.recipe import Recipe
from dopkit.writer import RECEIPT, Journal, OutputFolder, ShardFile, ShardWriter, write_text


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


@dataclass(frozen=True)
class Result:
    """A finished merge."""

    folder: Path
    plan: Plan
    receipt: receipt.Receipt
    already_there: bool = False  # it had been finished before; nothing was done
    pushed: publishing.Pushed | None = None


@dataclass
class _Prepared:
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


def plan(
    recipe: Recipe, out: str | Path | None = None, options: Options | None = None, progress: Progress | None = None
) -> Plan:
    """Everything that ``run`` would do, from headers alone: no weight is downloaded, nothing is written.

    Raises PlanError with every reason why the merge cannot work; OutputError when another merge is in the way.
    """
    with _prepare(recipe, out, options or Options(), progress or Progress()) as prepared:
        prepared.output.finished(prepared.fingerprint)  # raises if another merge is in the way
        if not prepared.plan.download_bytes:
            _compare_values(prepared)
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
    with _prepare(recipe, out, options, progress, download=True) as prepared:
        if prepared.output.finished(prepared.fingerprint, weights=not options.frees):
            done = receipt.read(prepared.output.path)
            return Result(prepared.output.path, prepared.plan, done, already_there=True)
        _fetch(prepared, progress)
        try:
            _compare_values(prepared)
        except PlanError:
            prepared.output.discard_untouched()
            raise
        return _merge(prepared, progress, options)


@contextmanager
def _prepare(
    recipe: Recipe, out: str | Path | None, options: Options, progress: Progress, download: bool = False
) -> Iterator[_Prepared]:
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
        yield _Prepared(
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


def _fetch(prepared: _Prepared, progress: Progress) -> None:
    """Download what is not here yet; of the output nothing is written but an empty journal."""
    if prepared.plan.download_bytes and not prepared.plan.streamed:
        prepared.open_journal().close()  # remembers the commits, should the download break and a branch move
        progress.stage("downloading")
    for checkpoint in dict.fromkeys([prepared.donor, *prepared.models]):
        checkpoint.fetch()


def _compare_values(prepared: _Prepared) -> None:
    """Refuse what no header tells: integers that differ, tied tensors that do not agree. Few and small, as a rule."""
    if problems := check_equal(prepared.plan, prepared.donor, prepared.models):
        raise PlanError(f"cannot merge: {count(len(problems), 'problem')}", problems)


def _merge(prepared: _Prepared, progress: Progress, options: Options) -> Result:
    before = resident_bytes()
    output, made = prepared.output, prepared.plan
    folder = output.prepare()
    with ExitStack() as stack:
        journal = prepared.open_journal()
        stack.callback(journal.close)
        gone = publishing.shipped(options.push, journal, folder) if options.push and options.frees else {}
        ahead = publishing.Ahead(options.push, made, journal, options.frees) if options.push else None
        if ahead:
            stack.callback(ahead.stop)
        writer = ShardWriter(folder, made.shards, journal, ahead.add if ahead else None, gone)
        stack.callback(writer.close)
        if journal.resumed:
            progress.note(f"continuing: {len(writer.done)} of {len(made.jobs)} tensors are already there")
        progress.stage("merging")
        Engine(made, prepared.donor, prepared.models, writer, prepared.devices, progress).run()
        shards = writer.finish()
        if ahead:
            progress.stage("uploading")
            ahead.finish()  # it reads the files where they are now
        progress.stage("verifying")
        elsewhere = {*gone, *(ahead.freed if ahead else ())}
        done = _finish(folder, prepared, journal, shards, before, elsewhere)
        output.publish()
    return Result(output.path, made, done)


def _finish(
    folder: Path, prepared: _Prepared, journal: Journal, shards: list[ShardFile], before: int, elsewhere: set[str]
) -> receipt.Receipt:
    """Side files, verification, receipt, recipe and card: all that stands beside the weights."""
    made, donor = prepared.plan, prepared.donor_model
    backbone = skeleton.backbone_class(donor.config) if made.headless else None
    assembly.write_side_files(folder, made, prepared.donor, backbone)
    verified = verification.verify(folder, made, donor, elsewhere)
    peak = max(peak_resident_bytes(), journal.peak_before)
    measured: dict[str, Any] = {
        "device": prepared.devices.main.type,
        "seconds": round(journal.seconds, 3),
        "peak_resident_bytes": peak,
        "resident_bytes_before": before,
        "resumed": journal.resumed,
    }
    done = receipt.make(made, prepared.fingerprint, journal.entries, shards, measured, verified)
    recipe_yaml = made.recipe.to_yaml(prepared.output.path.absolute())
    sources = [card.source_card(checkpoint) for checkpoint in dict.fromkeys([prepared.donor, *prepared.models])]
    write_text(folder / receipt.RECIPE_FILE, recipe_yaml)
    write_text(
        folder / card.CARD_FILE, card.render(made, done, sources, backbone or donor.skeleton.class_name, recipe_yaml)
    )
    write_text(folder / RECEIPT, receipt.to_json(done))
    return done
