"""``--keep-stages``: every stage written as a model of its own beside the result, and read from there."""

from __future__ import annotations

from dataclasses import replace

from dopkit import loadable
from dopkit.checkpoints import open_checkpoint
from dopkit.cluster import Cluster
from dopkit.merging import merge
from dopkit.planning import Plan
from dopkit.planning.outputs import STAGES
from dopkit.preparing import Options, Prepared
from dopkit.processes import Processes
from dopkit.progress import Progress
from dopkit.refs import ModelRef
from dopkit.sources import Sources
from dopkit.writer import OutputFolder


def keep_stages(prepared: Prepared, progress: Progress, processes: Processes, cluster: Cluster | None = None) -> None:
    """Merge the stages of an accepted plan into its working folder, those left by an earlier run excepted.

    Raises as ``merge`` does; what is done stays.
    """
    if processes.first:
        prepared.open_journal().close()  # from here on the working folder is that of this very merge
    for stage in prepared.sources.stages:
        name, staged = stage.ref.text, stage.staged
        plan = _within(staged.plan, prepared.plan)
        sources = Sources(plan, stage.donor, stage.models, (), staged.donor)
        output = OutputFolder(prepared.output.partial / STAGES / name)
        loads = loadable.check(plan, staged.donor, stage.models)
        own = Prepared(plan.recipe, sources, prepared.devices, output, loads)
        if not processes.tell(processes.first and output.finished(own.fingerprint)):
            progress.note(f"stage {name}")
            merge(own, progress, Options(processes=processes, cluster=cluster))
        stage.read_from(open_checkpoint(ModelRef(name, folder=output.path.absolute())))


def _within(stage: Plan, whole: Plan) -> Plan:
    """The plan of a stage, which was made for any memory, with that of the recipe as a whole."""
    return replace(
        stage,
        stream_bytes=whole.stream_bytes,
        buffers=whole.buffers,
        work_bytes=whole.work_bytes,
        program_bytes=whole.program_bytes,
        memory_bytes=stage.memory_bytes + whole.program_bytes,
    )
