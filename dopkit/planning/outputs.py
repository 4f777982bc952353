"""What a merge may write beside the model itself: the models of earlier steps, the state of its folds, and results
that still wait for the scale of the whole model.

Pure functions of jobs; ``Plan`` says which of it is wanted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from dopkit import layout
from dopkit.planning.jobs import TensorJob

STEPS, STATE, UNSCALED, STAGES = "steps", "state", "unscaled", "stages"  # sub-folders of the output


def step_folder(step: int) -> str:
    """Where the model after this step lies, as a posix path in the output folder."""
    return f"{STEPS}/{step:02d}"


def state_name(job: TensorJob, part: str) -> str:
    """What one tensor of a fold's state is called in the files of ``STATE``."""
    return f"{job.name}:{part}"


def state_shards(jobs: Iterable[TensorJob], max_shard_size: int) -> tuple[layout.Shard, ...]:
    """The files that hold the state of every fold."""
    return layout.lay_out([tensor for job in jobs for tensor in _state(job)], max_shard_size)


def unscaled_shards(jobs: Iterable[TensorJob], max_shard_size: int) -> tuple[layout.Shard, ...]:
    """The files that hold what the folds return, in the precision they work in."""
    return layout.lay_out([(job.name, job.working_dtype, job.shape) for job in jobs if job.rule.fold], max_shard_size)


def _state(job: TensorJob) -> Iterator[layout.Tensor]:
    if job.rule.fold is None:
        return
    whole = job.shape if not job.slices else job.shape[1:]
    for part, (dtype, shape) in job.rule.state(whole).items():
        # A float64 model keeps its precision.
        dtype = job.working_dtype if dtype == "F32" else dtype
        yield state_name(job, part), dtype, (job.rows, *shape) if job.slices else shape
