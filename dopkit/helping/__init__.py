"""The part of whoever does not lead a merge: some of its jobs, in a process that was launched or on a cluster.

The writers and the engine are made in the same way by the process that leads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

from dopkit.checkpoints import Checkpoint
from dopkit.engine import Engine
from dopkit.engine.companions import Companions, Sizes
from dopkit.engine.outputs import Outputs
from dopkit.engine.scaling import Norms, Scaler, unscaled_folder
from dopkit.layout import Shard
from dopkit.planning import Plan, TensorJob
from dopkit.planning.outputs import STATE, step_folder
from dopkit.preparing import Prepared
from dopkit.processes import Processes
from dopkit.progress import Progress
from dopkit.sources import Sources
from dopkit.spreading import Guest, Run
from dopkit.writer import GuestJournal, TensorWriter

W = TypeVar("W", bound=TensorWriter)


def help_along(prepared: Prepared, progress: Progress, processes: Processes, sizes: Sizes) -> None:
    """The part of a launched process that is not the first: its share of the weights."""
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

        outputs = outputs_of(made, open_writer)
        guest = Guest(processes, made, journal, writers)
        engine = engine_of(prepared, outputs, progress, sizes)
        with guest.sharing() as (jobs, _):
            engine.run(jobs)
        if outputs.unscaled:
            with guest.sharing() as (jobs, (norms, recorded)):
                journal.know(recorded)
                scaling_by(outputs, prepared.sources, folder, progress, norms)(jobs)


def outputs_of(made: Plan, open_writer: Callable[[str, Sequence[Shard]], W]) -> Outputs[W]:
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


def engine_of(
    prepared: Prepared,
    outputs: Outputs[TensorWriter],
    progress: Progress,
    sizes: Sizes,
    kept: Checkpoint | None = None,
) -> Engine:
    """What does the jobs of the first pass; ``kept`` is the state that the merge goes on from."""
    sources, folder = prepared.sources, prepared.output.partial
    companions = Companions(sources.companions, sizes)
    donor, models, devices = sources.donor, sources.models, prepared.devices
    return Engine(prepared.plan, donor, models, outputs, devices, progress, kept, companions, scratch=folder)


def scaling_by(outputs: Outputs[TensorWriter], sources: Sources, folder: Path, progress: Progress, norms: Norms) -> Run:
    """What does the jobs of the second pass, which reads what the first one wrote into ``folder``."""

    def run(jobs: Sequence[TensorJob]) -> None:
        Scaler(outputs, sources.donor, folder, progress).run(jobs, norms)

    return run
