"""What a merged model carries so that it can grow: ``dopkit_state.json``, and the state of its folds where it was kept.

With the base and the merged weights this is all that a later ``dopkit add`` needs of the models that came before.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dopkit.errors import OutputError, Problem, count
from dopkit.layout import INDEX_FILE
from dopkit.planning import Continuation, Plan, Source
from dopkit.planning.outputs import STATE
from dopkit.recipe import Recipe
from dopkit.writer import write_text

STATE_FILE = "dopkit_state.json"
MOST_BYTES = 10_000_000  # of the file; it grows by a line or two for a model

_File = Annotated[str, Field(pattern=rf"^{STATE}/[^/\\\x00]+$")]
_Number = Annotated[float, Field(ge=0, lt=1e300)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


class Merged(_Strict):
    """One model that went in: its repository or the last part of its folder, its commit or hash, its size."""

    model: str
    identity: str
    bytes: Annotated[int, Field(ge=0, lt=1 << 63)]


class State(_Strict):
    """The file, checked. ``scale`` is what the merged task vector was multiplied by, ``norms`` are of the models'."""

    layout: Literal[1]
    base: Merged | None
    models: Annotated[list[Merged], Field(min_length=1)]
    scale: Annotated[float, Field(gt=0, lt=1e300)] = 1.0
    norms: list[_Number] = []
    kept: list[_File] = []  # the files that hold the state of the folds; none when it was not kept
    inexact: str | None = None  # why merging all models at once would give something else


def make(plan: Plan, scale: float, norms: tuple[float, ...]) -> State:
    """The state of a finished merge; see ``Continuation`` for its numbers."""
    base = None if plan.recipe.base_model is None else _merged(plan.donor)
    kept = [f"{STATE}/{shard.file}" for shard in plan.state_shards]
    if len(kept) > 1:
        kept.append(f"{STATE}/{INDEX_FILE}")
    return State(
        layout=1,
        base=base,
        models=[_merged(source) for source in plan.merged_models],
        scale=scale,
        norms=list(norms),
        kept=kept,
        inexact=plan.continues.inexact if plan.continues else None,
    )


def write(folder: Path, state: State) -> None:
    """Put the state beside the weights."""
    write_text(folder / STATE_FILE, json.dumps(state.model_dump(), indent=1, ensure_ascii=False) + "\n")


def parse(text: str, shown: str) -> State:
    """The text of a state file, checked but not trusted. Raises OutputError."""
    try:
        return State.model_validate_json(text)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"]) or "it"
        raise OutputError(f"{shown} is damaged: {where} is missing or not what it should be") from None


def continuation(
    state: State, recipe: Recipe, kept: bool, inexact: str | None, download_bytes: int = 0
) -> Continuation:
    """What a merge needs to know to go on from this one. ``recipe`` is the one beside the state.

    ``kept``, ``inexact`` and ``download_bytes`` are for the continuation as they are.
    Raises OutputError when state and recipe are not of one merge.
    """
    models, norms = len(recipe.models), len(state.norms)
    if len(state.models) != models:
        what = f"it tells of {count(len(state.models), 'model')}, the recipe beside it of {models}"
        raise OutputError(f"{STATE_FILE} is not of this merge", [Problem("", what)])
    if recipe.method.scale_of(recipe.parameters) == "norm" and norms != models:
        what = f"it tells the norms of {norms} task vectors, and the scale needs those of {models}"
        raise OutputError(f"{STATE_FILE} is not of this merge", [Problem("", what)])
    earlier = tuple(
        Source(entry.model, one.identity, "", one.bytes, 0)
        for entry, one in zip(recipe.models, state.models, strict=True)
    )
    why = state.inexact or inexact
    return Continuation(recipe, earlier, state.scale, tuple(state.norms), kept, why, download_bytes)


def _merged(source: Source) -> Merged:
    return Merged(model=source.ref.name, identity=source.identity, bytes=source.nbytes)
