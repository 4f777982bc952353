"""The receipt: what happened, as data. Only what the run measured, and nothing that could not be read back.

The layout is versioned; ``dopkit show`` and later merges read it.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dopkit import __version__
from dopkit.errors import OutputError, Problem
from dopkit.planning import Plan
from dopkit.recipe import Recipe
from dopkit.recipe.reading import load_recipe
from dopkit.writer import RECEIPT, ShardFile

LAYOUT = 1
RECIPE_FILE = "dopkit_recipe.yaml"
_PACKAGES = ("torch", "transformers", "safetensors", "huggingface_hub", "accelerate")

Receipt = dict[str, Any]


_Size = Annotated[int, Field(ge=0, lt=1 << 63)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, defer_build=True)


class _SourceShape(_Strict):
    model: str
    identity: str


class _StageShape(_Strict):
    name: str
    method: str
    base: _SourceShape | None
    models: list[_SourceShape]


class _RunShape(_Strict):
    device: str
    seconds: Annotated[float, Field(ge=0, lt=1e12)]
    peak_resident_bytes: _Size


class _ShardShape(_Strict):
    file: str
    bytes: _Size
    sha256: str


class _HeadShape(_Strict):
    name: str
    model: str
    architecture: str
    file: Annotated[str, Field(pattern=r"^heads/[^/\\\x00]+\.safetensors$")]
    bytes: _Size
    sha256: str
    labels: int | None
    first_labels: list[str]


class _StepShape(_Strict):
    objective_before: float | None = None  # of methods that minimise one
    objective_after: float | None = None

    @model_validator(mode="after")
    def _both_or_neither(self) -> _StepShape:
        if (self.objective_before is None) != (self.objective_after is None):
            raise ValueError("an objective before without one after")
        return self


class _TensorShape(_Strict):
    role: str
    rule: str
    device: str
    seconds: float
    steps: list[_StepShape] = []


class _ScoreShape(_Strict):
    value: float


class _TaskShape(_Strict):
    name: str
    metric: str


class _RowShape(_Strict):
    label: str
    kind: str
    model: str | None
    scores: dict[str, _ScoreShape]


class _EvaluationShape(_Strict):
    tasks: list[_TaskShape]
    rows: list[_RowShape]
    acc: float | None
    bwt: float | None
    definitions: dict[str, str]

    @model_validator(mode="after")
    def _numbers_are_defined(self) -> _EvaluationShape:
        for name in ("acc", "bwt"):
            if getattr(self, name) is not None and name not in self.definitions:
                raise ValueError(f"{name} without its definition")
        return self


class _Shape(_Strict):
    """What a receipt must hold to be read; what is written besides is for people."""

    parameters: dict[str, Any] = {}
    base: _SourceShape | None
    models: list[_SourceShape]
    companions: list[_SourceShape] = []
    stages: list[_StageShape] = []
    run: _RunShape
    verified: dict[str, str]
    versions: dict[str, str]
    max_shard_size: Annotated[int, Field(gt=0)] | None = None
    shards: list[_ShardShape]
    heads: list[_HeadShape] = []
    tensors: dict[str, _TensorShape]
    evaluation: _EvaluationShape | None = None


def make(
    plan: Plan,
    fingerprint: str,
    entries: Mapping[str, Mapping[str, Any]],
    shards: Sequence[ShardFile],
    run: Mapping[str, Any],
    verified: Mapping[str, Any],
    scale: float = 1.0,
    heads: Sequence[Mapping[str, Any]] = (),
    earlier: Receipt | None = None,
) -> Receipt:
    """The receipt of a finished run. ``entries`` are the journal's, by tensor name.

    ``scale`` is what the merged task vector was multiplied by, ``heads`` are those that lie beside the backbone.
    ``earlier`` is the receipt of the merge that this one goes on from; what it recorded of earlier steps is kept.
    """
    before = earlier["tensors"] if earlier else {}
    return {
        "layout": LAYOUT,
        "fingerprint": fingerprint,
        "method": plan.recipe.merge_method,
        "parameters": plan.recipe.parameters.in_force(),
        "base": None if plan.recipe.base_model is None else _source(plan.donor),
        "models": [_source(source) for source in plan.merged_models],
        "companions": [*(earlier.get("companions", []) if earlier else []), *_companions(plan)],
        "stages": _stages(plan, earlier),
        "merged_before": plan.continues.step if plan.continues else 0,
        "scale": scale,
        "steps": [step for step in plan.written_steps if step != plan.last_step],
        "order": "given" if plan.seed is None else {"shuffle": {"seed": plan.seed}},
        "run": dict(run),
        "verified": dict(verified),
        "versions": versions(),
        "max_shard_size": plan.max_shard_size,
        "shards": [{"file": shard.file, "bytes": shard.size, "sha256": shard.sha256} for shard in shards],
        "heads": [dict(head) for head in heads],
        "tensors": {job.name: _tensor(entries[job.name], str(job.role), before.get(job.name)) for job in plan.jobs},
        "dropped": [{"model": one.ref.text, "tensor": one.name, "why": one.why} for one in plan.dropped],
        "notes": list(plan.notes),
    }


def versions() -> dict[str, str]:
    """Of everything that takes part in the arithmetic or the files."""
    found = {"dopkit": __version__, "python": sys.version.split()[0], "platform": platform.platform(terse=True)}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def read(folder: Path) -> Receipt:
    """The receipt of a folder that dopkit made. Raises OutputError when it is not one."""
    path = folder / RECEIPT
    if not path.is_file():
        raise OutputError(f"{folder} is not a merged model", [Problem("", f"it holds no {RECEIPT}")])
    return parse(path.read_text(encoding="utf-8", errors="replace"), str(path))


def read_recipe(folder: Path) -> Recipe:
    """The recipe of a folder that dopkit made. Folders in it are meant from where that lies, and not from a link to it.

    Raises RecipeError.
    """
    return load_recipe((folder.resolve() if folder.is_symlink() else folder) / RECIPE_FILE)


def parse(text: str, shown: str) -> Receipt:
    """The text of a receipt as data in which everything that is read stands in its place. Raises OutputError."""
    try:
        receipt = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise OutputError(f"{shown} is damaged: {error}") from None
    if not isinstance(receipt, dict) or receipt.get("layout") != LAYOUT:
        raise OutputError(f"{shown} was written by another version of dopkit")
    try:
        _Shape.model_validate(receipt)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise OutputError(f"{shown} is damaged: {where} is missing or not what it should be") from None
    return receipt


def to_json(receipt: Receipt) -> str:
    """The receipt as the text of its file."""
    return json.dumps(receipt, indent=1, ensure_ascii=False) + "\n"


def objective(receipt: Receipt) -> str | None:
    """What became of the objective over all matrices and steps, as a clause; None for a method that minimises none.

    An objective over pairs adds up over the steps; one over all models is what the last step left.
    """
    pairs = receipt.get("parameters", {}).get("history") == "last"
    before = after = 0.0
    matrices = 0
    for tensor in receipt["tensors"].values():
        steps = [step for step in tensor.get("steps", []) if step.get("objective_before") is not None]
        matrices += bool(steps)
        for step in steps if pairs else steps[-1:]:
            before, after = before + step["objective_before"], after + step["objective_after"]
    if not matrices:
        return None
    share = f"{after / before:.1%} of" if before else "no more than"
    where = "at the mean of each pair" if pairs else "at the mean of the models"
    return f"the objective over {matrices} matri{'x' if matrices == 1 else 'ces'}: {share} what it is {where}"


def _source(source: Any) -> dict[str, Any]:
    return {"model": source.ref.text, "identity": source.identity, "bytes": source.nbytes}


def _companions(plan: Plan) -> list[dict[str, Any]]:
    """What was read beside the models: of which one, by which parameter, and what it is."""
    return [
        {"of": model.ref.text, "parameter": parameter, **_source(source)}
        for model, own in zip(plan.models, plan.companions, strict=False)
        for parameter, source in own.items()
    ]


def _stages(plan: Plan, earlier: Receipt | None) -> list[dict[str, Any]]:
    """The stages of this merge, behind those that only the merge has read which this one goes on from."""
    before = [stage for stage in (earlier or {}).get("stages", []) if stage["name"] not in plan.stages]
    return [*before, *(_stage(name, stage.plan) for name, stage in plan.stages.items())]


def _stage(name: str, plan: Plan) -> dict[str, Any]:
    """A model that was merged on the way."""
    return {
        "name": name,
        "method": plan.recipe.merge_method,
        "parameters": plan.recipe.parameters.in_force(),
        "base": None if plan.recipe.base_model is None else _source(plan.donor),
        "models": [_source(source) for source in plan.models],
    }


def _tensor(entry: Mapping[str, Any], role: str, before: Mapping[str, Any] | None) -> dict[str, Any]:
    kept = {key: entry[key] for key in ("rule", "device", "seconds", "steps") if key in entry}
    if before and (earlier := before.get("steps")):
        kept["steps"] = [*earlier, *kept.get("steps", [])]
    return {"role": role, **kept}
