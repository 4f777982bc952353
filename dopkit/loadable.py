"""Will what is planned load into its model class? Asked before anything is downloaded, told in the receipt.

The files of a finished merge have the names and shapes of its plan (``verification``), so the answer holds for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dopkit import skeleton
from dopkit.checkpoints import Checkpoint
from dopkit.errors import PlanError, Problem, count
from dopkit.planning import Head, Plan
from dopkit.planning.heads import LABEL_KEYS
from dopkit.planning.matching import Model
from dopkit.roles import Role


def check(plan: Plan, donor: Model, models: Sequence[Checkpoint]) -> dict[str, str]:
    """Hold the plan against transformers' own loader, on the meta device: one clause per thing checked.

    Raises PlanError naming every tensor that is missing, unexpected or of another shape in the result, or in a head of
    it; what the donor itself stumbles over is not new.
    """
    clauses = {"loads": _model(plan, donor)}
    if plan.heads:
        clauses["heads"] = _heads(plan, donor.config, models)
    return clauses


def _model(plan: Plan, donor: Model) -> str:
    backbone = skeleton.backbone_class(donor.config) if plan.headless else None
    config = {**(donor.config or {}), "architectures": [backbone]} if backbone else donor.config
    class_name = backbone or donor.skeleton.class_name
    found = skeleton.check_loads(config, {job.name: job.shape for job in plan.jobs})
    if found.unchecked:
        return f"loading was not checked: {found.unchecked}"
    # What is put together from slices was held against its class before.
    expected = _expected(plan, donor, config) if found.problems and not plan.layers else set()
    problems = [problem for problem in found.problems if problem.place not in expected]
    if problems:
        raise PlanError(f"cannot merge: the result would not load as {class_name}", problems)
    clause = f"loads as {class_name} with no missing or unexpected key"
    if found.problems:
        places = sorted(problem.place for problem in found.problems)
        clause += f", but for those that the base lacks too or that were left out: {', '.join(places)}"
    return clause


def _expected(plan: Plan, donor: Model, config: Mapping[str, Any] | None) -> set[str]:
    """The keys that are missing on purpose, and those that the donor itself loads without."""
    own = skeleton.check_loads(config, {name: spec.shape for name, spec in donor.specs.items()})
    written = {job.canonical for job in plan.jobs}
    left = {canonical for canonical, name in donor.names.items() if plan.headless and donor.role(name) is Role.HEAD}
    left |= {twin for twin, source in donor.skeleton.tied.items() if source in left}
    return {problem.place for problem in own.problems} | (left - written)


def _heads(plan: Plan, config: Mapping[str, Any] | None, models: Sequence[Checkpoint]) -> str:
    """``config`` is the donor's."""
    by_key = {model.ref.key: model for model in models}
    problems = [problem for head in plan.heads for problem in _head(plan, head, config, by_key[head.ref.key])]
    if problems:
        raise PlanError("cannot merge: the heads would not load on the merged backbone", problems)
    return f"{count(len(plan.heads), 'head')} kept bit for bit, each loading on the merged backbone"


def _head(plan: Plan, head: Head, donors: Mapping[str, Any] | None, model: Checkpoint) -> Iterator[Problem]:
    """What is missing, and was not missing in the model that the head comes from."""
    backbone = {key: value for key, value in (donors or {}).items() if key not in LABEL_KEYS}
    config = {**backbone, **head.config, "architectures": [head.architecture]}
    merged = {job.name: job.shape for job in plan.jobs}
    found = skeleton.check_loads(config, merged | {spec.name: spec.shape for spec in head.tensors}).problems
    if found:
        own = skeleton.check_loads(model.config, {name: spec.shape for name, spec in model.specs.items()})
        # A part of the backbone that this head has no use for is no fault of it.
        known = merged.keys() | {problem.place for problem in own.problems}
        yield from (Problem(f"{head.file}: {one.place}", one.what) for one in found if one.place not in known)
