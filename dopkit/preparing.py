"""Every model opened, the plan made: what stands before a merge, or before a plan that is only shown.

Writes nothing but an empty journal, and that only when weights are about to be downloaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from dopkit import heads, hub, loadable, pinning, publishing
from dopkit.cluster import Cluster
from dopkit.device import Devices, choose
from dopkit.engine.descent import check_descent
from dopkit.engine.equality import check_equal
from dopkit.errors import PlanError, Problem, count
from dopkit.limits import MemoryLimit
from dopkit.measure import available_bytes, resident_bytes
from dopkit.planning import Continuation, Plan
from dopkit.planning.building import Wanted
from dopkit.planning.room import Room
from dopkit.processes import ALONE, Processes
from dopkit.progress import Progress
from dopkit.recipe import Recipe
from dopkit.sources import Sources, open_sources
from dopkit.writer import Journal, OutputFolder


@dataclass(frozen=True)
class Options:
    """How to run, as opposed to what to merge: none of it but the device changes a byte of the weights."""

    device: str = "auto"  # auto, cpu, cuda, cuda:N, mps
    max_memory: int | MemoryLimit | None = None  # bytes, of the host if it is a number; None is what is free
    max_shard_size: int = 5_000_000_000  # bytes
    overwrite: bool = False  # replace an output folder that dopkit made
    stream: bool = False  # read the weights over the network while merging, and store none of them
    push: publishing.PushOptions | None = None  # publish what was merged
    save_steps: bool = False  # keep the model after every step
    keep_stages: bool = False  # keep the models of the stages
    keep_state: bool = False  # keep the state of the folds, so that models added later give the very same
    processes: Processes = ALONE  # that share the work
    cluster: Cluster | None = None  # whose workers merge the tensors, instead of this process
    tasks: str | Path | None = None  # a file of tasks: score the model after every step, and write a report

    @property
    def limit(self) -> MemoryLimit:
        return MemoryLimit.of(self.max_memory)

    @property
    def keeps_steps(self) -> bool:
        """Whether the models of earlier steps are written: tasks are scored on each of them."""
        return self.save_steps or self.tasks is not None

    @property
    def frees(self) -> bool:
        """Whether each shard leaves the disk once it is on the Hub."""
        return self.stream and self.push is not None


@dataclass
class Prepared:
    """Opened sources, the plan made from them, and where the result goes."""

    recipe: Recipe  # as it was given, its order drawn
    sources: Sources
    devices: Devices
    output: OutputFolder
    loads: dict[str, str]  # what transformers says of the result, as clauses; a worker on a cluster need not know

    @property
    def plan(self) -> Plan:
        return self.sources.plan

    @cached_property
    def fingerprint(self) -> str:
        return self.plan.fingerprint(self.devices.engine)

    def open_journal(self) -> Journal:
        """The journal in the working folder, both made if they are not there."""
        pins = pinning.to_remember(self.recipe, self.plan.recipe)
        return Journal(self.output.prepare(), self.fingerprint, self.output.overwrite, pins)


@contextmanager
def prepare(
    recipe: Recipe,
    output: OutputFolder,
    options: Options,
    progress: Progress,
    download: bool = False,
    continues: Continuation | None = None,
) -> Iterator[Prepared]:
    """Open the models and plan their merge into ``output``. Raises PlanError with every reason why it cannot work."""
    devices = choose(options.device, options.processes.local_rank, options.limit).among(1 + len(recipe.stages))
    pins = pinning.remembered(recipe.drawn(), output)
    if pins:
        progress.note("continuing an unfinished merge at the commits it began with (--overwrite begins anew)")
    obstacles = [obstacle] if (obstacle := output.obstacle()) else []
    if options.frees and (options.processes.number > 1 or options.cluster is not None):
        what = "several processes need the whole output on the disk, and --stream --push-to-hub frees it on the way"
        obstacles.append(Problem("", what, "Leave out --stream, or push afterwards."))
    if options.tasks and options.frees:
        remedy = "Leave out --stream or --tasks, or push afterwards."
        obstacles.append(Problem("", "scoring needs the weights, and --stream --push-to-hub leaves none here", remedy))
    if options.push:
        # The model that a merge goes on from is no source of the result, those that are in it are.
        before = continues.recipe.real_refs if continues else ()
        merged = (*before, *(entry.model for entry in recipe.models[1:]), *recipe.companions) if continues else ()
        merged = merged or recipe.real_refs
        obstacles += publishing.obstacles(merged, options.push.by_default(recipe.repo_id))
    with open_sources(
        recipe,
        partial(_room, output, options, devices),
        progress,
        options.max_shard_size,
        devices,
        stream=options.stream,
        download=download,
        pins=pins,
        obstacles=obstacles,
        wanted=Wanted(options.keeps_steps, options.keep_state, continues, options.keep_stages),
    ) as sources:
        loads = loadable.check(sources.plan, sources.donor_model, sources.models)
        yield Prepared(recipe.drawn(), sources, devices, output, loads)


def host_bytes(limit: MemoryLimit, processes: int = 1) -> int:
    """What one of so many processes on this machine may come to, with what it holds already.

    Inside a container or a cluster's job that is what these still allow.
    """
    free = resident_bytes() + available_bytes() // processes
    return free if limit.host is None else min(free, limit.host // processes)


def _room(output: OutputFolder, options: Options, devices: Devices, program: int) -> Room:
    cache, same = hub.cache_disk(output.free_location())
    here = options.processes.here
    return Room(
        disk=output.free_bytes(),
        cache_disk=cache,
        memory=host_bytes(options.limit, here),
        written=output.bytes_written(),
        shared_disk=same,
        memory_given=options.limit.host is not None,
        shards_leave=options.frees,
        processes=here,
        program=program,
        device=devices.own_bytes,
        device_float64=devices.has_float64,
        parks=options.cluster is None,  # its workers may have no disk of ours
    )


def agree(prepared: Prepared, processes: Processes) -> None:
    """Refuse in the first process when the others are about to merge something else, or in another way."""
    found = processes.gather((prepared.devices.engine, prepared.fingerprint))
    if processes.first and len(set(found)) > 1:
        engines = sorted({engine for engine, _ in found})
        if len(engines) > 1:
            what = f"they would give different bytes: {'; '.join(engines)}"
            remedy = "Give all of them the same kind of device, the same torch and the same OMP_NUM_THREADS."
        else:
            what = "the models or the recipe are not the same for all of them"
            remedy = "Are they on storage that every machine shares? If a model on the Hub has just changed, run again."
        raise PlanError("the processes do not agree", [Problem("", what, remedy)])
    processes.tell()


def fetch(prepared: Prepared, progress: Progress, processes: Processes = ALONE) -> None:
    """Download what is not here yet, once on each machine; of the output nothing is written but an empty journal."""
    if prepared.plan.download_bytes and not prepared.plan.streamed and processes.first:
        prepared.open_journal().close()  # remembers the commits, should the download break and a branch move
        progress.stage("downloading")
    if processes.local_rank:
        processes.gather(None)
    for checkpoint in prepared.sources.read:
        checkpoint.fetch()
    if not processes.local_rank:
        processes.gather(None)


def compare_values(prepared: Prepared, related: bool = False) -> None:
    """Refuse what no header tells: integers that differ, tied tensors that do not agree, heads that are not finite.

    Few and small, as a rule.

    With ``related`` also models whose weights do not descend from the base's, judged by a sample. Raises PlanError.
    """
    made, sources = prepared.plan, prepared.sources
    problems = []
    for stage in sources.stages:
        unequal = check_equal(stage.staged.plan, stage.donor, stage.models)
        problems += [replace(one, place=f"stage {stage.ref.text}: {one.place}") for one in unequal]
    problems += check_equal(made, sources.donor, sources.models) + heads.not_finite(made, sources.models)
    if related:
        problems += check_descent(made, sources.donor, sources.models)
    if problems:
        raise PlanError(f"cannot merge: {count(len(problems), 'problem')}", problems)
