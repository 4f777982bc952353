"""The merge itself, from an accepted plan to a finished folder: weights, side files, state, receipt, card.

With several processes the first does all of it but for its share of the weights; the others do theirs. With a cluster
its workers do the weights.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dopkit import assembly, card, heads, publishing, receipt, skeleton, state, verification
from dopkit.checkpoints import Checkpoint
from dopkit.engine.companions import Sizes
from dopkit.engine.scaling import Norms, measure, number
from dopkit.helping import engine_of, help_along, outputs_of, scaling_by
from dopkit.helping.hiring import crew_of, forget_tokens
from dopkit.layout import Shard
from dopkit.measure import peak_resident_bytes, resident_bytes
from dopkit.planning import Plan
from dopkit.planning.outputs import STAGES, STATE, STEPS, UNSCALED, step_folder
from dopkit.preparing import Options, Prepared
from dopkit.progress import Progress
from dopkit.spreading import Executor, Host, folding, scaling
from dopkit.writer import RECEIPT, Journal, ShardFile, ShardWriter, write_text


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
        help_along(prepared, progress, processes, sizes)
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
        writers: dict[str, ShardWriter] = {}

        def open_writer(place: str, shards: Sequence[Shard]) -> ShardWriter:
            result = not place  # the model itself, and not what stands beside it
            on_shard = ahead.add if ahead and result else None
            writer = ShardWriter(folder, shards, journal, on_shard, gone if result else None, place)
            stack.callback(writer.close)
            writers[place] = writer
            return writer

        outputs = outputs_of(made, open_writer)
        if journal.resumed:
            there = len(made.jobs) - len(outputs.to_fold())
            progress.note(f"continuing: {there} of {len(made.jobs)} tensors are already there")
        if options.cluster is None:
            progress.stage("merging")
        kept = earlier.state() if earlier and earlier.state else None
        if kept:
            stack.callback(kept.close)
        with _executor(prepared, options, journal, writers, progress, sizes) as executor:
            executor.do(folding(outputs), engine_of(prepared, outputs, executor.progress, sizes, kept).run)
            norms = measure(outputs)
            if norms is not None and outputs.unscaled:
                scale = scaling_by(outputs, sources, folder, executor.progress, norms)
                executor.do(scaling(outputs, norms), scale)
        shards = writers[""].finish()
        for writer in (*outputs.models.values(), *([outputs.state] if outputs.state else [])):
            if writer is not writers[""]:
                writer.finish()
        journal.forget_guests()
        if ahead:
            progress.stage("uploading")
            ahead.finish()  # it reads the files where they are now
        for name in _not_wanted(made):
            shutil.rmtree(folder / name, ignore_errors=True)
        forget_tokens(folder)
        progress.stage("verifying")
        if earlier:
            earlier.take_along(folder)
        elsewhere = {*gone, *(ahead.freed if ahead else ())}
        before_this = earlier.receipt if earlier else None
        done = _finish(folder, prepared, journal, shards, norms, before, elsewhere, before_this, executor.number)
        output.publish()
    return done


def _not_wanted(made: Plan) -> Iterator[str]:
    """Sub-folders that only the merge itself has a use for, or that an earlier run began with other options."""
    yield UNSCALED
    for name, wanted in ((STEPS, made.keeps_steps), (STATE, made.state_shards), (STAGES, made.keeps_stages)):
        if not wanted:
            yield name


def _executor(
    prepared: Prepared,
    options: Options,
    journal: Journal,
    writers: Mapping[str, ShardWriter],
    progress: Progress,
    sizes: Sizes,
) -> Executor:
    """Who does the jobs: this process, those that were launched with it, or the workers of a cluster."""
    if options.cluster is not None:
        return crew_of(options.cluster, prepared, options.limit, journal, writers, progress, sizes)
    return Host(options.processes, prepared.output.partial, journal, list(writers.values()), progress)


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
    verification.require_unchanged(sources.read)
    verified = verification.verify(folder, made, elsewhere) | prepared.loads
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
    kept = heads.records(folder, made, earlier)
    done = receipt.make(made, prepared.fingerprint, journal.entries, shards, measured, verified, scale, kept, earlier)
    recipe_yaml = made.whole_recipe.to_yaml(prepared.output.real.absolute())
    parts = {part.ref.key: part for checkpoint in sources.distinct for part in checkpoint.sources}
    cards = [card.source_card(part) for part in parts.values()]
    write_text(folder / receipt.RECIPE_FILE, recipe_yaml)
    write_text(
        folder / card.CARD_FILE, card.render(made, done, cards, backbone or donor.skeleton.class_name, recipe_yaml)
    )
    write_text(folder / RECEIPT, receipt.to_json(done))
    return done
