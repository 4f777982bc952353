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

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dopkit import __version__
from dopkit.errors import OutputError, Problem
from dopkit.planning import Plan
from dopkit.writer import RECEIPT, ShardFile

LAYOUT = 1
RECIPE_FILE = "dopkit_recipe.yaml"
_PACKAGES = ("torch", "transformers", "safetensors", "huggingface_hub", "accelerate")

Receipt = dict[str, Any]


_Size = Annotated[int, Field(ge=0, lt=1 << 63)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True)


class _SourceShape(_Strict):
    model: str
    identity: str


class _RunShape(_Strict):
    device: str
    seconds: Annotated[float, Field(ge=0, lt=1e12)]
    peak_resident_bytes: _Size


class _ShardShape(_Strict):
    file: str
    bytes: _Size
    sha256: str


class _StepShape(_Strict):
    objective_before: float
    objective_after: float


class _TensorShape(_Strict):
    role: str
    rule: str
    device: str
    seconds: float
    steps: list[_StepShape] = []


class _Shape(_Strict):
    """What a receipt must hold to be read; what is written besides is for people."""

    base: _SourceShape | None
    models: list[_SourceShape]
    run: _RunShape
    verified: dict[str, str]
    versions: dict[str, str]
    max_shard_size: Annotated[int, Field(gt=0)] | None = None
    shards: list[_ShardShape]
    tensors: dict[str, _TensorShape]


def make(
    plan: Plan,
    fingerprint: str,
    entries: Mapping[str, Mapping[str, Any]],
    shards: Sequence[ShardFile],
    run: Mapping[str, Any],
    verified: Mapping[str, Any],
) -> Receipt:
    """The receipt of a finished run. ``entries`` are the journal's, by tensor name."""
    return {
        "layout": LAYOUT,
        "fingerprint": fingerprint,
        "method": plan.recipe.merge_method,
        "parameters": plan.recipe.parameters.in_force(),
        "base": None if plan.recipe.base_model is None else _source(plan.donor),
        "models": [_source(source) for source in plan.models],
        "order": "given" if plan.seed is None else {"shuffle": {"seed": plan.seed}},
        "run": dict(run),
        "verified": dict(verified),
        "versions": versions(),
        "max_shard_size": plan.max_shard_size,
        "shards": [{"file": shard.file, "bytes": shard.size, "sha256": shard.sha256} for shard in shards],
        "tensors": {job.name: _tensor(entries[job.name], str(job.role)) for job in plan.jobs},
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
    """What became of DOP's objective over all matrices and steps, as a clause; None when no matrix was solved for."""
    solved = [tensor["steps"] for tensor in receipt["tensors"].values() if "steps" in tensor]
    steps = [step for each in solved for step in each if "objective_before" in step]
    if not steps:
        return None
    before, after = (sum(step[f"objective_{when}"] for step in steps) for when in ("before", "after"))
    share = f"{after / before:.1%} of" if before else "no more than"
    return f"DOP's objective over {len(solved)} matrices: {share} what it is at the mean of each pair"


def _source(source: Any) -> dict[str, Any]:
    return {"model": source.ref.text, "identity": source.identity, "bytes": source.nbytes}


def _tensor(entry: Mapping[str, Any], role: str) -> dict[str, Any]:
    kept = {key: entry[key] for key in ("rule", "device", "seconds", "steps") if key in entry}
    return {"role": role, **kept}
