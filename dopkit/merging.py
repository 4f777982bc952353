"""The merge itself, from an accepted plan to a finished folder: weights, side files, state, receipt, card.

With several processes the first does all of it but for its share of the weights; the others do theirs.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from dopkit import assembly, card, heads, publishing, receipt, skeleton, state, verification
from dopkit.checkpoints import Checkpoint
from dopkit.engine import Engine
from dopkit.engine.companions import Companions, Sizes
from dopkit.engine.outputs import Outputs
from dopkit.engine.scaling import Norms, Scaler, measure, number, unscaled_folder
from dopkit.layout import Shard
from dopkit.measure import peak_resident_bytes, resident_bytes
from dopkit.planning import Plan
from dopkit.planning.outputs import STATE, UNSCALED, step_folder
from dopkit.preparing import Options, Prepared
from dopkit.processes import Processes
from dopkit.progress import Progress
from dopkit.spreading import Guest, Host, folding, scaling
from dopkit.writer import RECEIPT, GuestJournal, Journal, ShardFile, ShardWriter, TensorWriter, write_text

W = TypeVar("W", bound=TensorWriter)


@dataclass(frozen=True)
class Earlier:
    """What a merge takes over from the one that it goes on from, beside what the plan says."""

    receipt: receipt.Receipt
    state: Callable[[], Checkpoint] | None  # opens that of the folds, when the plan reads it
    take_along: Callable[[Path], None]  # puts into the working folder what belongs to the earlier models


def merge(
    prepared: Prepared, progress: Progress, options: Options, earlier: Earlier | None = None, sizes: Sizes = ()
) -> receipt.Receipt:
    """Make the folder of an accepted plan, in every one of the processes that ``options`` know of.

    ``sizes`` are those of what is read beside the models. Raises MergeError, OutputError, HubError, VerificationError.
    """
    processes = options.processes
    done = None
    if processes.first:
        done = _lead(prepared, progress, options, earlier, sizes)
    else:
        _help(prepared, progress, processes, sizes)
    told: receipt.Receipt = processes.tell(done)
    return told


def _lead(
    prepared: Prepared, progress: Progress, options: Options, earlier: Earlier | None, sizes: Sizes
) -> receipt.Receipt:
    """The part of the first process, or of one that is alone."""
    before = resident_bytes()
    output, made, sources = prepared.output, prepared.plan, prepared.sources
    folder = output.prepare()
    with ExitStack() as stack:
        journal = prepared.open_journal()
        stack.callback(journal.close)
        gone = publishing.shipped(options.push, journal, folder) if options.push and options.frees else {}
        ahead = publishing.Ahead(options.push, made, journal, options.frees) if options.push else None
        if ahead:
            stack.callback(ahead.stop)
        writers: list[ShardWriter] = []

        def open_writer(place: str, shards: Sequence[Shard]) -> ShardWriter:
            result = not place  # the model itself, and not what stands beside it
            on_shard = ahead.add if ahead and result else None
            writer = ShardWriter(folder, shards, journal, on_shard, gone if result else None, place)
            stack.callback(writer.close)
            writers.append(writer)
            return writer

        outputs = _outputs(made, open_writer)
        if journal.resumed:
            there = len(made.jobs) - len(outputs.to_fold())
            progress.note(f"continuing: {there} of {len(made.jobs)} tensors are already there")
        progress.stage("merging")
        host = Host(options.processes, folder, journal, writers, progress)
        kept = earlier.state() if earlier and earlier.state else None
        if kept:
            stack.callback(kept.close)
        engine = _engine(prepared, outputs, host.progress, sizes, kept)
        with host.sharing(folding(outputs)) as jobs:
            engine.run(jobs)
        norms = measure(outputs)
        if norms is not None:
            with host.sharing(scaling(outputs, norms)) as jobs:
                Scaler(outputs, sources.donor, folder, host.progress).run(jobs, norms)
        shards = writers[0].finish()
        for writer in (*outputs.models.values(), *([outputs.state] if outputs.state else [])):
            if writer is not writers[0]:
                writer.finish()
        journal.forget_guests()
        if ahead:
            progress.stage("uploading")
            ahead.finish()  # it reads the files where they are now
        shutil.rmtree(folder / UNSCALED, ignore_errors=True)
        progress.stage("verifying")
        if earlier:
            earlier.take_along(folder)
        elsewhere = {*gone, *(ahead.freed if ahead else ())}
        before_this = earlier.receipt if earlier else None
        done = _finish(
            folder, prepared, journal, shards, norms, before, elsewhere, before_this, options.processes.number
        )
        output.publish()
    return done


def _help(prepared: Prepared, progress: Progress, processes: Processes, sizes: Sizes) -> None:
    """The part of any other process: its share of the weights."""
    made, folder = prepared.plan, prepared.output.partial
    with ExitStack() as stack:
        processes.tell()  # the folder is there, and what an earlier run left is taken over
        journal = GuestJournal(folder, processes.rank, prepared.fingerprint)
        stack.callback(journal.close)
        writers: list[TensorWriter] = []

        def open_writer(place: str, shards: Sequence[Shard]) -> TensorWriter:
            writer = TensorWriter(folder, shards, journal, place)
            stack.callback(writer.close)
            writers.append(writer)
            return writer

        outputs = _outputs(made, open_writer)
        guest = Guest(processes, made, journal, writers)
        engine = _engine(prepared, outputs, progress, sizes, None)
        with guest.sharing() as (jobs, _):
            engine.run(jobs)
        if outputs.unscaled:
            with guest.sharing() as (jobs, (norms, recorded)):
                journal.know(recorded)
                Scaler(outputs, prepared.sources.donor, folder, progress).run(jobs, norms)


def _engine(
    prepared: Prepared, outputs: Outputs[TensorWriter], progress: Progress, sizes: Sizes, kept: Checkpoint | None
) -> Engine:
    sources = prepared.sources
    companions = Companions(sources.companions, sizes)
    return Engine(prepared.plan, sources.donor, sources.models, outputs, prepared.devices, progress, kept, companions)


def _outputs(made: Plan, open_writer: Callable[[str, Sequence[Shard]], W]) -> Outputs[W]:
    """The writers of everything that the plan writes, that of the result first."""
    last = open_writer("", made.shards)
    models = {step: open_writer(step_folder(step), made.shards) for step in made.written_steps[:-1]}
    waiting = made.written_steps if made.unscaled_shards else ()
    return Outputs(
        made,
        {**models, made.last_step: last},
        {step: open_writer(unscaled_folder(step), made.unscaled_shards) for step in waiting},
        open_writer(STATE, made.state_shards) if made.state_shards else None,
    )


def _finish(
    folder: Path,
    prepared: Prepared,
    journal: Journal,
    shards: list[ShardFile],
    norms: Norms | None,
    before: int,
    elsewhere: Collection[str],
    earlier: receipt.Receipt | None,
    processes: int,
) -> receipt.Receipt:
    """Side files, verification, state, receipt, recipe and card: all that stands beside the weights."""
    made, sources = prepared.plan, prepared.sources
    donor = sources.donor_model
    backbone = skeleton.backbone_class(donor.config) if made.headless else None
    assembly.write_side_files(folder, made, sources.donor, donor.config, backbone)
    for step in made.written_steps[:-1]:
        assembly.write_side_files(folder / step_folder(step), made, sources.donor, donor.config, backbone)
        for shard in made.shards:
            verification.verify_shard(folder / step_folder(step) / shard.file, made)
    heads.write(folder, made, sources.models)
    verified = verification.verify(folder, made, donor, elsewhere)
    if made.heads:
        verified["heads"] = heads.verify(made, donor.config, sources.models)
    scale = norms.scale(made.last_step) if norms else number(made)
    state.write(folder, state.make(made, scale, norms.tasks if norms else ()))
    measured: dict[str, Any] = {
        "device": prepared.devices.main.type,
        "seconds": round(journal.seconds, 3),
        "peak_resident_bytes": max(peak_resident_bytes(), journal.peak_before),
        "resident_bytes_before": before,
        "resumed": journal.resumed,
        "processes": processes,
    }
    kept = heads.records(folder, made)
    done = receipt.make(made, prepared.fingerprint, journal.entries, shards, measured, verified, scale, kept, earlier)
    recipe_yaml = made.whole_recipe.to_yaml(prepared.output.path.absolute())
    parts = {part.ref.key: part for checkpoint in sources.distinct for part in checkpoint.sources}
    cards = [card.source_card(part) for part in parts.values()]
    write_text(folder / receipt.RECIPE_FILE, recipe_yaml)
    write_text(
        folder / card.CARD_FILE, card.render(made, done, cards, backbone or donor.skeleton.class_name, recipe_yaml)
    )
    write_text(folder / RECEIPT, receipt.to_json(done))
    return done
