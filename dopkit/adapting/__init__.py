"""``output: adapter``: adapters of one base merged into one adapter, without a byte of the base's weights.

A weighted sum of low-rank products is a low-rank product, and so is what DOP makes of some. The result is a plain LoRA
that PEFT loads, and that more adapters can be added to.
"""

from __future__ import annotations

from pathlib import Path

import torch

from dopkit import receipt
from dopkit.adapting.preparing import Grown, prepared
from dopkit.adapting.writing import merge
from dopkit.planning import Plan
from dopkit.preparing import Options
from dopkit.progress import Progress
from dopkit.recipe import Recipe
from dopkit.writer import OutputFolder

__all__ = ["Grown", "plan", "run"]


def plan(
    recipe: Recipe, output: OutputFolder, options: Options, progress: Progress, grown: Grown | None = None
) -> Plan:
    """What ``run`` would do, from headers alone. Raises PlanError, OutputError."""
    with prepared(recipe, output, options, progress, grown=grown) as ready:
        output.finished(_fingerprint(ready.plan))
        return ready.plan


def run(
    recipe: Recipe, output: OutputFolder, options: Options, progress: Progress, grown: Grown | None = None
) -> tuple[Path, Plan, receipt.Receipt, bool]:
    """Make the adapter, or finish it: the folder, the plan, the receipt, and whether it was there already.

    Raises PlanError before anything is written, MergeError, OutputError, HubError and VerificationError later.
    """
    with prepared(recipe, output, options, progress, download=True, grown=grown) as ready:
        made, fingerprint = ready.plan, _fingerprint(ready.plan)
        if output.finished(fingerprint):
            return output.path, made, receipt.read(output.path), True
        if made.download_bytes:
            progress.stage("downloading")
        for adapter in ready.adapters:
            adapter.adapter.fetch()
        done = merge(recipe, ready, output, fingerprint, progress, grown.receipt if grown else None)
        output.publish()
        return output.path, made, done, False


def _fingerprint(made: Plan) -> str:
    return made.fingerprint(f"cpu, torch {torch.__version__}")
