"""The last look at a finished folder, by what lies on disk: is it what the plan promised, does it load?

That every value is finite was seen when the tensor was in memory, and what was written is what was seen.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from dopkit import skeleton
from dopkit.checkpoints import Checkpoint
from dopkit.checkpoints.folder import open_folder
from dopkit.checkpoints.reading import read_header
from dopkit.errors import CheckpointError, MergeError, Problem, VerificationError
from dopkit.planning import Plan
from dopkit.planning.matching import Model
from dopkit.refs import ModelRef
from dopkit.roles import Role
from dopkit.specs import TensorSpec

Report = dict[str, str]


def verify(folder: Path, plan: Plan, donor: Model, elsewhere: Collection[str] = ()) -> Report:
    """Check the folder against the plan and against transformers; one clause per thing checked.

    Shards ``elsewhere`` went through ``verify_shard`` before they left.

    Raises VerificationError naming every tensor that is missing, unexpected or of another shape.
    """
    if elsewhere:
        for shard in plan.shards:
            if shard.file not in elsewhere:
                verify_shard(folder / shard.file, plan)
    else:
        _verify_whole(folder, plan)
    report = {
        "names": f"all {len(plan.jobs)} tensors are there in the planned shape",
        "finite": "every value is finite",
    }
    report["loads"] = _loads(plan, donor)
    return report


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


def _loads(plan: Plan, donor: Model) -> str:
    """Load into the class that is written, on the meta device; what the donor itself stumbles over is not new."""
    backbone = skeleton.backbone_class(donor.config) if plan.headless else None
    config = {**(donor.config or {}), "architectures": [backbone]} if backbone else donor.config
    class_name = backbone or donor.skeleton.class_name
    check = skeleton.check_loads(config, {job.name: job.shape for job in plan.jobs})
    if check.unchecked:
        return f"loading was not checked: {check.unchecked}"
    # What is put together from slices was held against its class before it was made.
    expected = _expected(plan, donor, config) if check.problems and not plan.layers else set()
    problems = [problem for problem in check.problems if problem.place not in expected]
    if problems:
        raise VerificationError(f"the merged folder does not load as {class_name}", problems)
    report = f"loads as {class_name} with no missing or unexpected key"
    if check.problems:
        places = sorted(problem.place for problem in check.problems)
        report += f", but for those that the base lacks too or that were left out: {', '.join(places)}"
    return report


def _expected(plan: Plan, donor: Model, config: Mapping[str, Any] | None) -> set[str]:
    """The keys that are missing on purpose, and those that the donor itself loads without."""
    own = skeleton.check_loads(config, {name: spec.shape for name, spec in donor.specs.items()})
    written = {job.canonical for job in plan.jobs}
    left = {canonical for canonical, name in donor.names.items() if plan.headless and donor.role(name) is Role.HEAD}
    left |= {twin for twin, source in donor.skeleton.tied.items() if source in left}
    return {problem.place for problem in own.problems} | (left - written)
