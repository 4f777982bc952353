"""Every model of a recipe, opened at its commit; what cannot be opened becomes a problem, so that all are told."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dopkit import hub
from dopkit.checkpoints import Checkpoint, OnlyPickles, open_checkpoint
from dopkit.errors import DopkitError, Problem
from dopkit.progress import Progress
from dopkit.recipe import Recipe
from dopkit.refs import ModelRef
from dopkit.units import show_size


def open_all(
    recipe: Recipe, pins: Mapping[ModelRef, ModelRef], progress: Progress, download: bool
) -> tuple[dict[ModelRef, Checkpoint], list[Problem]]:
    """Pin each model, but for those that ``pins`` has, and open it; the models that could be, and the problems.

    A model that must be downloaded before it can be opened is, with ``download``, if nothing else is wrong.
    """
    progress.stage("reading headers")
    opened: dict[ModelRef, Checkpoint] = {}
    problems: list[Problem] = []
    pickled: dict[ModelRef, OnlyPickles] = {}
    for ref in recipe.refs:
        try:
            opened[ref] = open_checkpoint(pins.get(ref) or hub.pin(ref))
        except OnlyPickles as found:
            pickled[ref] = found
        except DopkitError as error:
            problems.append(_as_problem(error))
    problems += _no_room(pickled)
    if problems or not download:
        return opened, [*problems, *map(_as_problem, pickled.values())]
    for ref, unread in pickled.items():
        progress.note(f"{unread.ref.short} has no safetensors: downloading {unread.size} before it can be planned")
        try:
            unread.fetch()
            opened[ref] = open_checkpoint(unread.ref)
        except DopkitError as error:
            problems.append(_as_problem(error))
    return opened, problems


def _no_room(pickled: Mapping[ModelRef, OnlyPickles]) -> list[Problem]:
    need, have = sum(unread.nbytes for unread in pickled.values()), hub.cache_disk(Path.cwd())[0]
    if need <= have:
        return []
    what = f"too little disk space for downloads: {show_size(need)} needed, {show_size(have)} there"
    return [Problem("", what, "Free some, or set HF_HOME.")]


def _as_problem(error: DopkitError) -> Problem:
    first = error.problems[0] if error.problems else Problem("", "")
    what = ": ".join(part for part in (error.headline, first.place, first.what) if part)
    return Problem("", what, first.remedy)
