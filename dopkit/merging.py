"""The merge itself, from an accepted plan to a finished folder: weights, side files, receipt, card."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dopkit import assembly, card, publishing, receipt, skeleton, verification
from dopkit.engine import Engine
from dopkit.measure import peak_resident_bytes, resident_bytes
from dopkit.preparing import Options, Prepared
from dopkit.progress import Progress
from dopkit.writer import RECEIPT, Journal, ShardFile, ShardWriter, write_text


def merge(prepared: Prepared, progress: Progress, options: Options) -> receipt.Receipt:
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
    return done


def _finish(
    folder: Path, prepared: Prepared, journal: Journal, shards: list[ShardFile], before: int, elsewhere: set[str]
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
