"""Everything in the merged folder that is no weight: config, tokenizer or processor files, recipe, card.

Takes it all from one named donor (the base), so nothing depends on which model happened to be looked at first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dopkit.checkpoints import Checkpoint
from dopkit.planning import Plan
from dopkit.planning.heads import LABEL_KEYS
from dopkit.specs import DTYPES, MERGEABLE
from dopkit.writer import copy_file, write_text, writing


def write_side_files(
    folder: Path, plan: Plan, donor: Checkpoint, config: Mapping[str, Any] | None, backbone: str | None
) -> list[str]:
    """Put the donor's side files and the corrected config beside the weights; names of what was written.

    ``config`` is the donor's, or what that says of the tower that was merged. ``backbone`` is the class without head,
    when the plan leaves heads out and the class is known.
    """
    written = []
    if config is not None:
        corrected = corrected_config(config, plan, backbone)
        write_text(folder / "config.json", json.dumps(corrected, indent=2, ensure_ascii=False) + "\n")
        written.append("config.json")
    for name in donor.side_files:
        target = folder / name
        with writing(target):
            target.parent.mkdir(exist_ok=True)
        copy_file(donor.side_file(name), target)
        written.append(name)
    return written


def corrected_config(config: Mapping[str, Any], plan: Plan, backbone: str | None) -> dict[str, Any]:
    """The donor's config with the dtype that was written and, without heads, no trace of them."""
    dtype = main_dtype(plan)
    result: dict[str, Any] = _with_dtype(config, dtype) if dtype else dict(config)
    if dtype and not {"dtype", "torch_dtype"} & result.keys():
        result["dtype"] = dtype
    if plan.headless:
        result = {key: value for key, value in result.items() if key not in LABEL_KEYS}
        if backbone:
            result["architectures"] = [backbone]
    return result


def main_dtype(plan: Plan) -> str | None:
    """The dtype (torch's name) that holds most of the written bytes, of those that are weights."""
    totals: dict[str, int] = {}
    for job in plan.jobs:
        if job.dtype in MERGEABLE:
            totals[job.dtype] = totals.get(job.dtype, 0) + job.nbytes
    return DTYPES[max(totals, key=lambda dtype: totals[dtype])].torch if totals else None


def _with_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Replace the dtype where it is stated; parts of a model (text_config ...) state it too."""
    return {
        key: dtype
        if key in ("dtype", "torch_dtype") and isinstance(value, str)
        else _with_dtype(value, dtype)
        if isinstance(value, Mapping)
        else value
        for key, value in config.items()
    }
