"""The merge itself, from an accepted plan to a finished folder: weights, side files, state, receipt, card."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dopkit import assembly, card, heads, publishing, receipt, skeleton, state, verification
from dopkit.checkpoints import Checkpoint
from dopkit.engine import Engine
from dopkit.engine.companions import Companions, Sizes
from dopkit.engine.outputs import Outputs
from dopkit.engine.scaling import Norms, Scaler, measure, number, unscaled_folder
from dopkit.measure import peak_resident_bytes, resident_bytes
from dopkit.planning.outputs import STATE, UNSCALED, step_folder
from dopkit.preparing import Options, Prepared
from dopkit.progress import Progress
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
    """Make the folder of an accepted plan; ``sizes`` are those of what is read beside the models.

    Raises MergeError, OutputError, HubError, VerificationError."""
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
        last = ShardWriter(folder, made.shards, journal, ahead.add if ahead else None, gone)
        outputs = _outputs(prepared, folder, journal, last, stack)
        if journal.resumed:
            there = len(made.jobs) - len(outputs.to_fold())
            progress.note(f"continuing: {there} of {len(made.jobs)} tensors are already there")
        progress.stage("merging")
        kept = earlier.state() if earlier and earlier.state else None
        if kept:
            stack.callback(kept.close)
        companions = Companions(sources.companions, sizes)
        engine = Engine(made, sources.donor, sources.models, outputs, prepared.devices, progress, kept, companions)
        engine.run()
        norms = measure(outputs)
        if norms is not None:
            Scaler(outputs, sources.donor, folder, progress).run(norms)
        shards = last.finish()
        for writer in (*outputs.models.values(), *([outputs.state] if outputs.state else [])):
            if writer is not last:
                writer.finish()
        if ahead:
            progress.stage("uploading")
            ahead.finish()  # it reads the files where they are now
        shutil.rmtree(folder / UNSCALED, ignore_errors=True)
        progress.stage("verifying")
        if earlier:
            earlier.take_along(folder)
        elsewhere = {*gone, *(ahead.freed if ahead else ())}
        before_this = earlier.receipt if earlier else None
        done = _finish(folder, prepared, journal, shards, norms, before, elsewhere, before_this)
        output.publish()
    return done


def _outputs(prepared: Prepared, folder: Path, journal: Journal, last: ShardWriter, stack: ExitStack) -> Outputs:
    """The writers of everything that the plan writes; closed with ``stack``."""
    made = prepared.plan

    def writer(place: str, shards: Sequence[Any]) -> ShardWriter:
        opened = ShardWriter(folder, shards, journal, place=place)
        stack.callback(opened.close)
        return opened

    stack.callback(last.close)
    models = {step: writer(step_folder(step), made.shards) for step in made.written_steps[:-1]}
    waiting = made.written_steps if made.unscaled_shards else ()
    return Outputs(
        made,
        {**models, made.last_step: last},
        {step: writer(unscaled_folder(step), made.unscaled_shards) for step in waiting},
        writer(STATE, made.state_shards) if made.state_shards else None,
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
