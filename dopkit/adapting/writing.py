"""From the plan of an adapter to its folder: factors, config, verification, state, receipt, recipe and card."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

from dopkit import card, pinning, receipt, state
from dopkit.adapting.describing import render
from dopkit.adapting.modules import Modules
from dopkit.adapting.preparing import Prepared
from dopkit.checkpoints.adapter import open_adapter
from dopkit.checkpoints.adapter_config import CONFIG
from dopkit.checkpoints.joining import adapter_config
from dopkit.errors import CheckpointError, VerificationError, count
from dopkit.measure import peak_resident_bytes, resident_bytes
from dopkit.progress import Progress
from dopkit.receipt import Receipt
from dopkit.recipe import Recipe
from dopkit.refs import ModelRef
from dopkit.verification import require_unchanged
from dopkit.writer import RECEIPT, Journal, OutputFolder, ShardWriter, write_text


def merge(
    recipe: Recipe,
    prepared: Prepared,
    output: OutputFolder,
    fingerprint: str,
    progress: Progress,
    earlier: Receipt | None = None,
) -> Receipt:
    """All that stands in the folder. ``recipe`` is as it was given, ``earlier`` the receipt of what is added to."""
    before, made = resident_bytes(), prepared.plan
    folder = output.prepare()
    pinned = made.recipe.model_copy(update={"base_model": recipe.base_model and made.recipe.base_model})
    pins = pinning.to_remember(recipe.drawn(), pinned)
    with ExitStack() as stack:
        journal = Journal(folder, fingerprint, output.overwrite, pins)
        stack.callback(journal.close)
        writer = ShardWriter(folder, made.shards, journal)
        stack.callback(writer.close)
        modules = Modules(prepared, writer, progress)
        norms = modules.run()
        shards = writer.finish()
        require_unchanged(adapter.adapter for adapter in prepared.adapters)
        write_text(folder / CONFIG, _config(prepared))
        progress.stage("verifying")
        verified = {"applies": _verify(folder, prepared)}
        if lost := _lost(journal):
            verified["rank"] = lost
        measured = {
            "device": "cpu",
            "seconds": round(journal.seconds, 3),
            "peak_resident_bytes": max(peak_resident_bytes(), journal.peak_before),
            "resident_bytes_before": before,
            "resumed": journal.resumed,
        }
        scale = modules.scale
        state.write(folder, state.make(made, scale, norms))
        done = receipt.make(made, fingerprint, journal.entries, shards, measured, verified, scale, (), earlier)
        text = made.whole_recipe.to_yaml(output.real.absolute())
        write_text(folder / receipt.RECIPE_FILE, text)
        write_text(folder / card.CARD_FILE, render(prepared, done, text))
        write_text(folder / RECEIPT, receipt.to_json(done))
    return done


def _config(prepared: Prepared) -> str:
    own = prepared.adapters[0]
    tasks = {adapter.lora.task for adapter in prepared.adapters}
    named = own.lora.base if len({adapter.lora.base for adapter in prepared.adapters}) == 1 else None
    task = tasks.pop() if len(tasks) == 1 else None
    return json.dumps(adapter_config(prepared.modules, own.base.ref, named, task), indent=2) + "\n"


def _verify(folder: Path, prepared: Prepared) -> str:
    """Whether what was written applies to the base as it should, as a clause. Raises VerificationError."""
    base = prepared.adapters[0].base
    written = ModelRef(str(folder), folder=folder.absolute())
    try:
        opened = open_adapter(base.ref.with_adapter(written), base)
    except CheckpointError as error:
        raise VerificationError("the adapter does not apply to its base", error.problems) from None
    ranks = {
        product.a: (product.rank, product.scale) for change in opened.changes.values() for product in change.low_rank
    }
    opened.adapter.close()
    if ranks != {joined.a: (joined.rank, 1.0) for joined in prepared.modules}:
        raise VerificationError("the adapter does not apply to its base as planned")
    return f"applies to {count(len(prepared.modules), 'module')} of {base.ref.name}, every value finite"


def _lost(journal: Journal) -> str:
    """What the cut to a rank cost, as a clause; "" without a cut."""
    steps = [step for entry in journal.entries.values() for step in entry.get("steps", []) if "lost" in step]
    energy = sum(step["energy"] for step in steps)
    share = sum(step["lost"] for step in steps) / energy if energy else 0.0
    return f"{share:.2%} of the energy cut off in {count(len(steps), 'module')}" if steps else ""
