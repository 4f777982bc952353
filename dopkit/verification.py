"""The last look at a finished folder, by what lies on disk: is it what the plan promised?

That every value is finite was seen when the tensor was in memory, and what was written is what was seen.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from dopkit.checkpoints import Checkpoint
from dopkit.checkpoints.folder import open_folder
from dopkit.checkpoints.reading import read_header
from dopkit.errors import CheckpointError, MergeError, Problem, VerificationError
from dopkit.planning import Plan
from dopkit.refs import ModelRef
from dopkit.specs import TensorSpec

Report = dict[str, str]


def verify(folder: Path, plan: Plan, elsewhere: Collection[str] = ()) -> Report:
    """Check the folder against the plan; one clause per thing checked.

    Shards ``elsewhere`` went through ``verify_shard`` before they left.

    Raises VerificationError naming every tensor that is missing, unexpected or of another shape.
    """
    if elsewhere:
        for shard in plan.shards:
            if shard.file not in elsewhere:
                verify_shard(folder / shard.file, plan)
    else:
        _verify_whole(folder, plan)
    return {
        "names": f"all {len(plan.jobs)} tensors are there in the planned shape",
        "finite": "every value is finite",
    }


def require_unchanged(checkpoints: Iterable[Checkpoint]) -> None:
    """Raises MergeError when a folder was written to while it was read: some tensors may be of the new weights."""
    read = dict.fromkeys(part for checkpoint in checkpoints for part in checkpoint.sources)
    if changed := [part.ref.short for part in read if part.changed]:
        problems = [Problem(name, "its weights have been written to meanwhile") for name in changed]
        problems.append(Problem("", "", "Merge again with --overwrite, when nobody writes there any more."))
        raise MergeError("the models are not what they were when the merge began", problems)


def verify_shard(path: Path, plan: Plan) -> None:
    """Check one weight file against the plan. Raises VerificationError."""
    shard = next(shard for shard in plan.shards if shard.file == path.name)
    try:
        specs = read_header(path, path.name)[1]
    except CheckpointError as error:
        raise VerificationError(f"{path.name} cannot be read back", [Problem("", str(error))]) from error
    _same_tensors(specs, plan, {tensor.name for tensor in shard.tensors})


def _verify_whole(folder: Path, plan: Plan) -> None:
    try:
        found = open_folder(ModelRef(str(folder), folder=folder), folder)
    except CheckpointError as error:
        raise VerificationError("the merged folder cannot be read back", [Problem("", str(error))]) from error
    try:
        _same_tensors(found.specs, plan, {job.name for job in plan.jobs})
    finally:
        found.close()


def _same_tensors(specs: Mapping[str, TensorSpec], plan: Plan, names: Collection[str]) -> None:
    planned = {job.name: (job.dtype, job.shape) for job in plan.jobs if job.name in names}
    there = {name: (spec.dtype, spec.shape) for name, spec in specs.items()}
    wrong = sorted(name for name in planned.keys() | there.keys() if planned.get(name) != there.get(name))
    if wrong:
        problems = [Problem(name, f"planned {planned.get(name)}, found {there.get(name)}") for name in wrong]
        raise VerificationError("the merged folder is not what was planned", problems)
