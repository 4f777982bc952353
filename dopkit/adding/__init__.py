"""A merged model that grows: more models folded in, without those that are in it already. The same for adapters.

Reads the base, the merged model and the new ones, whatever came before; what is known of that stands in the recipe and
the state beside the merged weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dopkit import adapting
from dopkit.adding import adapters
from dopkit.adding.models import prepared_addition, taken_over
from dopkit.adding.wanted import addition
from dopkit.assessment import check_tasks
from dopkit.errors import DopkitError, PlanError, Problem
from dopkit.pipeline import Result, assessed, finish, foreseen, published
from dopkit.planning import Plan
from dopkit.preparing import Options
from dopkit.progress import Progress
from dopkit.writer import OutputFolder

__all__ = ["add", "plan_addition"]


def add(
    merged: str | Path,
    experts: Sequence[str],
    out: str | Path | None = None,
    options: Options | None = None,
    progress: Progress | None = None,
    parameters: Mapping[str, Any] | None = None,
    from_experts: bool = False,
) -> Result:
    """Fold more models into one that dopkit made, in the given order; ``merged`` is a folder, or user/name.

    Without ``out`` a folder is replaced once its successor is complete and verified, and a Hub model goes to a folder
    of its name. ``parameters`` are such as a recipe may set per model, for the new ones. ``from_experts`` reads every
    earlier model again instead of going on from the merged weights.

    Gives the weights that merging all models at once gives: to the last bit when the state of the folds was kept or
    the weights are float32 and unscaled; else within one rounding of what was written. Raises as ``run`` does;
    OutputError when ``merged`` is not a merge of dopkit's, PlanError when a model is in it already. A
    KeyboardInterrupt says what is done where the same call would not go on.
    """
    progress = progress or Progress()
    if options is not None and options.processes.number > 1:
        raise PlanError("models are added by one process", [Problem("", "", "Start it without `accelerate launch`.")])
    if options is not None and options.cluster is not None:
        raise PlanError("models are added by one process", [Problem("", "", "Leave out the cluster.")])
    OutputFolder(Path(merged), grows=True).put_back()  # if an earlier call was killed while it replaced the folder
    wanted = addition(merged, experts, out, options or Options(), parameters or {}, from_experts)
    options = wanted.options
    if options.tasks is not None:
        check_tasks(options.tasks)
    if wanted.old.is_adapter:
        result = Result(*adapting.run(*adapters.asked(wanted, progress)))
    else:
        with prepared_addition(wanted, progress, download=True) as prepared:
            result = finish(prepared, options, progress, taken_over(wanted, prepared), related=True)
    try:
        return published(assessed(result, options, progress), options, progress)
    except DopkitError as error:
        if not wanted.output.grows:
            raise
        done = Problem(str(result.folder), _DONE, _AFTERWARDS)
        raise type(error)(error.headline, [*error.problems, done]) from error
    except KeyboardInterrupt:
        if not wanted.output.grows:
            raise
        raise KeyboardInterrupt(f"{result.folder} {_DONE}. {_AFTERWARDS}") from None


_DONE = "holds the added models all the same"
_AFTERWARDS = "Go on from it with `dopkit eval` or `dopkit push`; `add` would refuse to add them again."


def plan_addition(
    merged: str | Path,
    experts: Sequence[str],
    out: str | Path | None = None,
    options: Options | None = None,
    parameters: Mapping[str, Any] | None = None,
    from_experts: bool = False,
) -> Plan:
    """What ``add`` would do, from headers alone: no weight is downloaded, nothing is written.

    Raises as ``add`` does before it writes anything.
    """
    wanted = addition(merged, experts, out, options or Options(), parameters or {}, from_experts)
    if wanted.old.is_adapter:
        return adapting.plan(*adapters.asked(wanted, Progress()))
    with prepared_addition(wanted, Progress(), download=False) as prepared:
        return foreseen(prepared, related=True)
