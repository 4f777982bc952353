"""How the models of a recipe relate, before they are merged: opened and planned like a merge, then measured.

Writes nothing.
"""

from __future__ import annotations

from pathlib import Path

from dopkit import hub
from dopkit.device import choose
from dopkit.engine.relating import memory_bytes, relate
from dopkit.errors import PlanError, Problem
from dopkit.measure import resident_bytes
from dopkit.planning.room import Room, too_little_memory
from dopkit.preparing import Options, host_bytes
from dopkit.progress import Progress
from dopkit.recipe import Recipe
from dopkit.relations import Relations
from dopkit.sources import Sources, open_sources

_NO_LIMIT = 1 << 62  # bytes: nothing is merged, so the merge needs no room


def inspect(
    recipe: Recipe,
    options: Options | None = None,
    progress: Progress | None = None,
    ranks: bool = True,
    energy: float = 0.9,
) -> Relations:
    """Norms, cosines and ranks of the task vectors of ``recipe``, from the weights alone.

    Downloads what is missing, or streams it with ``options.stream``; of the other options only ``device`` and
    ``max_memory`` count. ``energy`` is the share of a task vector's sum of singular values that its rank stands for.
    Raises PlanError with every reason why the models do not go together; CheckpointError when one cannot be compared.
    """
    options, progress = options or Options(), progress or Progress()
    if not 0 < energy <= 1:
        raise PlanError(f"the energy {energy:g} is no share", [Problem("", "", "Choose one over 0 and up to 1.")])
    if recipe.base_model is None:
        what = "it names no base_model, and task vectors are differences from a base"
        raise PlanError("cannot inspect the recipe", [Problem("", what, "Add `base_model: user/name` to the recipe.")])
    devices = choose(options.device, limit=options.limit).among(1 + len(recipe.stages))
    disk = hub.cache_disk(Path.cwd())[0]

    def room(program: int) -> Room:
        return Room(_NO_LIMIT, disk, _NO_LIMIT, program=program)

    size = options.max_shard_size
    with open_sources(recipe, room, progress, size, devices, options.stream, download=True) as sources:
        _check_whole(sources)
        _check_memory(sources, options, ranks)
        if sources.plan.download_bytes and not sources.plan.streamed:
            progress.stage("downloading")
        elif sources.plan.streamed and ranks:
            progress.note("ranks read every matrix a second time over the network (--no-ranks reads it once)")
        for checkpoint in sources.distinct:
            checkpoint.fetch()
        progress.stage("comparing")
        return relate(sources.plan, sources.donor, sources.models, devices, progress, energy if ranks else None)


def _check_whole(sources: Sources) -> None:
    """Refuse what is put together from parts of models. Raises PlanError."""
    every = list(range(len(sources.models)))
    merged = [job for job in sources.plan.jobs if job.rule.fold is not None]
    some = [job.name for job in merged if not job.donor or [one.model for one in job.inputs] != every]
    if some:
        what = f"{some[0]} is not merged from all models, and task vectors are compared over whole ones"
        remedy = "Inspect a recipe that names the base and the models under `models`, without slices."
        raise PlanError("cannot inspect the recipe", [Problem("", what, remedy)])


def _check_memory(sources: Sources, options: Options, ranks: bool) -> None:
    have, program = host_bytes(options.limit), resident_bytes()
    need = program + memory_bytes(sources.plan, sources.donor, sources.models, ranks)
    if need > have:
        given = options.limit.host is not None
        room = Room(_NO_LIMIT, _NO_LIMIT, have, memory_given=given, program=program)
        what = "without the ranks, --no-ranks, it is less" if ranks else "for blocks of all models at once"
        raise PlanError("cannot inspect the recipe", [too_little_memory(what, need, room)])
