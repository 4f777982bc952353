"""A merge from recipe to folder: the steps in order, nothing else.

Each step lives in a module of its own. Nothing is printed; ``Progress`` is told what happens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dopkit import assembly, card, hub, receipt, skeleton, verification
from dopkit.checkpoints import Checkpoint, open_checkpoint
from dopkit.device import Devices, choose
from dopkit.engine import Engine, check_equal
from dopkit.errors import DopkitError, PlanError, Problem, count
from dopkit.measure import available_bytes, peak_resident_bytes, resident_bytes
from dopkit.planning import Plan, Source
from dopkit.planning.building import Room, build
from dopkit.planning.matching import Model
from dopkit.progress import Progress
from dopkit.recipe import Recipe
from dopkit.refs import ModelRef
from dopkit.writer import RECEIPT, Journal, OutputFolder, ShardFile, ShardWriter, write_text


@dataclass(frozen=True)
class Options:
    """How to run, as opposed to what to merge: none of it but the device changes a byte of the weights."""

    device: str = "auto"  # auto, cpu, cuda, cuda:N, mps
    max_memory: int | None = None  # bytes; None is what is free
    max_shard_size: int = 5_000_000_000  # bytes
    overwrite: bool = False  # replace an output folder that dopkit made


@dataclass(frozen=True)
class Result:
    """A finished merge."""

    folder: Path
    plan: Plan
    receipt: receipt.Receipt
    already_there: bool = False  # it had been finished before; nothing was done


@dataclass
class _Prepared:
    """Opened sources and the plan made from them."""

    plan: Plan
    donor: Checkpoint
    models: Sequence[Checkpoint]
    donor_model: Model
    devices: Devices
    output: OutputFolder

    @cached_property
    def fingerprint(self) -> str:
        return self.plan.fingerprint(self.devices.engine)


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

    The folder appears when it is complete and verified. Raises a DopkitError: PlanError before anything is written;
    MergeError, OutputError or HubError from the middle, after which the same call continues.
    """
    options, progress = options or Options(), progress or Progress()
    with _prepare(recipe, out, options, progress) as prepared:
        if prepared.output.finished(prepared.fingerprint):
            done = receipt.read(prepared.output.path)
            return Result(prepared.output.path, prepared.plan, done, already_there=True)
        _fetch(prepared, progress)
        _compare_values(prepared)
        return _merge(prepared, progress)


@contextmanager
def _prepare(recipe: Recipe, out: str | Path | None, options: Options, progress: Progress) -> Iterator[_Prepared]:
    seed = (recipe.seed or 0) if recipe.order == "shuffle" else None
    recipe = recipe.drawn()
    devices = choose(options.device)
    output = OutputFolder(Path(out) if out is not None else Path(recipe.name), options.overwrite)
    with ExitStack() as stack:
        opened, problems = _open_all(recipe, progress)
        for checkpoint in opened.values():
            stack.callback(checkpoint.close)
        if obstacle := output.obstacle():
            problems.append(obstacle)
        if len(opened) < len(recipe.refs):  # without every header there is nothing to compare
            raise PlanError(f"cannot merge: {count(len(problems), 'problem')}", problems)
        recipe = recipe.with_refs({ref: checkpoint.ref for ref, checkpoint in opened.items()})
        problems += _merged_twice(recipe)
        checkpoints = {checkpoint.ref: checkpoint for checkpoint in opened.values()}
        models = _look_at_all(checkpoints, recipe.donor)
        in_order = [entry.model for entry in recipe.models]
        made = build(
            recipe,
            models[recipe.donor],
            [models[ref] for ref in in_order],
            _room(output, options),
            options.max_shard_size,
            seed,
            problems,
        )
        yield _Prepared(
            made,
            checkpoints[recipe.donor],
            [checkpoints[ref] for ref in in_order],
            models[recipe.donor],
            devices,
            output,
        )


def _open_all(recipe: Recipe, progress: Progress) -> tuple[dict[ModelRef, Checkpoint], list[Problem]]:
    """Pin and open every model; a model that cannot be opened becomes a problem, so that all are told at once."""
    progress.stage("reading headers")
    opened: dict[ModelRef, Checkpoint] = {}
    problems: list[Problem] = []
    for ref in recipe.refs:
        try:
            opened[ref] = open_checkpoint(hub.pin(ref))
        except DopkitError as error:
            first = error.problems[0] if error.problems else Problem("", "")
            what = ": ".join(part for part in (error.headline, first.place, first.what) if part)
            problems.append(Problem("", what, first.remedy))
    return opened, problems


def _merged_twice(recipe: Recipe) -> Iterator[Problem]:
    """Two refs that look different and mean one commit; the recipe alone cannot tell."""
    seen = set()
    for entry in recipe.models:
        if entry.model.key in seen:
            yield Problem(entry.model.short, "is listed twice, under two revisions that are one commit")
        seen.add(entry.model.key)


def _look_at_all(checkpoints: Mapping[ModelRef, Checkpoint], donor: ModelRef) -> dict[ModelRef, Model]:
    """How each model's class sees its tensors. All are named in one way, so that they can be compared.

    A model whose own class cannot be built is held against the donor's; if the donor's cannot, all go by their names.
    """
    config = checkpoints[donor].config
    models = {donor: _look_at(checkpoints[donor], config)}
    by_name = models[donor].skeleton.fallback is not None
    for ref, checkpoint in checkpoints.items():
        if ref == donor:
            continue
        models[ref] = _look_at(checkpoint, config if by_name else checkpoint.config)
        if models[ref].skeleton.fallback and not by_name:
            models[ref] = _look_at(checkpoint, config)
    return models


def _look_at(checkpoint: Checkpoint, config: Mapping[str, Any] | None) -> Model:
    shapes = {name: spec.shape for name, spec in checkpoint.specs.items()}
    nbytes = sum(spec.nbytes for spec in checkpoint.specs.values())
    source = Source(checkpoint.ref, checkpoint.identity, checkpoint.state, nbytes, checkpoint.download_bytes)
    return Model(source, checkpoint.specs, checkpoint.config, skeleton.build(config, shapes))


def _room(output: OutputFolder, options: Options) -> Room:
    memory = available_bytes()
    if options.max_memory is not None:
        memory = min(memory, options.max_memory)
    cache, same = hub.cache_disk(output.free_location())
    return Room(output.free_bytes(), cache, memory, output.bytes_written(), same)


def _fetch(prepared: _Prepared, progress: Progress) -> None:
    """Download what is not here yet; still nothing is written."""
    if prepared.plan.download_bytes:
        progress.stage("downloading")
    for checkpoint in dict.fromkeys([prepared.donor, *prepared.models]):
        checkpoint.fetch()


def _compare_values(prepared: _Prepared) -> None:
    """Refuse what no header tells: integers that differ, tied tensors that do not agree. Few and small, as a rule."""
    if problems := check_equal(prepared.plan, prepared.donor, prepared.models):
        raise PlanError(f"cannot merge: {count(len(problems), 'problem')}", problems)


def _merge(prepared: _Prepared, progress: Progress) -> Result:
    before = resident_bytes()
    output, made = prepared.output, prepared.plan
    folder = output.prepare()
    with ExitStack() as stack:
        journal = Journal(folder, prepared.fingerprint, output.overwrite)
        stack.callback(journal.close)
        writer = ShardWriter(folder, made.shards, journal)
        stack.callback(writer.close)
        if journal.resumed:
            progress.note(f"continuing: {len(writer.done)} of {len(made.jobs)} tensors are already there")
        progress.stage("merging")
        Engine(made, prepared.donor, prepared.models, writer, prepared.devices, progress).run()
        shards = writer.finish()
        progress.stage("verifying")
        done = _finish(folder, prepared, journal, shards, before)
        output.publish()
    return Result(output.path, made, done)


def _finish(
    folder: Path, prepared: _Prepared, journal: Journal, shards: list[ShardFile], before: int
) -> receipt.Receipt:
    """Side files, verification, receipt, recipe and card: all that stands beside the weights."""
    made, donor = prepared.plan, prepared.donor_model
    backbone = skeleton.backbone_class(donor.config) if made.headless else None
    assembly.write_side_files(folder, made, prepared.donor, backbone)
    verified = verification.verify(folder, made, donor)
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
    sources = [_source_card(checkpoint) for checkpoint in dict.fromkeys([prepared.donor, *prepared.models])]
    write_text(folder / receipt.RECIPE_FILE, recipe_yaml)
    write_text(
        folder / "README.md", card.render(made, done, sources, backbone or donor.skeleton.class_name, recipe_yaml)
    )
    write_text(folder / RECEIPT, receipt.to_json(done))
    return done


def _source_card(checkpoint: Checkpoint) -> card.SourceCard:
    try:
        text = checkpoint.side_file("README.md").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        text = None
    return card.read_source_card(checkpoint.ref.name, text)
