"""Adapters added to an adapter that was merged of some: what ``adapting`` is asked for then."""

from __future__ import annotations

from functools import partial

from dopkit.adapting import Grown
from dopkit.adding.wanted import Addition, refuse_other_models
from dopkit.preparing import Options
from dopkit.progress import Progress
from dopkit.recipe import Recipe
from dopkit.writer import OutputFolder


def asked(wanted: Addition, progress: Progress) -> tuple[Recipe, OutputFolder, Options, Progress, Grown]:
    """The recipe that goes on from the merged adapter, or that merges all again, and what belongs to it."""
    recipe, before = (wanted.whole, None) if wanted.from_experts else wanted.on_top()
    wanted.tell(before, progress)
    earlier = wanted.old.receipt if before else None
    grown = Grown(before, earlier, partial(refuse_other_models, wanted))
    return recipe, wanted.output, wanted.options, progress, grown
