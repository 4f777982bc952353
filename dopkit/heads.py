"""The output heads of ``heads: per-task``: copied bit for bit beside the merged backbone, one file for each model.

Which heads there are is the plan's business. A file keeps the tensors under the names of the model's own checkpoint,
and in its metadata what it takes to load them: the class, the model they come from, its labels.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dopkit.checkpoints import Checkpoint
from dopkit.checkpoints.reading import bytes_of, read_header, torch_dtype
from dopkit.engine.announcing import Read, announce
from dopkit.errors import CheckpointError, OutputError, Problem
from dopkit.planning import BLOCK_ELEMENTS, Head, Plan
from dopkit.planning.heads import FOLDER, first_labels, labels
from dopkit.specs import build_header

Record = dict[str, Any]

_LABELS_SHOWN = 10


def not_finite(plan: Plan, models: Sequence[Checkpoint]) -> list[Problem]:
    """The heads that hold NaN or infinity: what is copied is checked like what is merged, but before."""
    found = []
    for head, model in _announced(plan, models):
        bad = {name for _, name, block in _blocks(head, model) if not bool(torch.isfinite(block).all())}
        found += [Problem(head.ref.short, f"{name} holds values that are NaN or infinite", _AGAIN) for name in bad]
    return found


_AGAIN = "Fetch the model again, or leave it out."


def write(folder: Path, plan: Plan, models: Sequence[Checkpoint]) -> None:
    """Write every head of the plan into the merged ``folder``.

    Raises OutputError when the disk is full or fails, CheckpointError or HubError when a model cannot be read.
    """
    for head, model in _announced(plan, models):
        _write(folder / head.file, head, model)


def carry_over(merged: Checkpoint, listed: Iterable[Mapping[str, Any]], folder: Path) -> None:
    """Copy the heads of an earlier merge as they are into ``folder``; ``listed`` are those that its receipt names.

    Raises CheckpointError when one is missing or is not what the receipt says, OutputError when it cannot be written.
    """
    for record in listed:
        try:
            source = merged.side_file(record["file"])
        except FileNotFoundError:
            raise _not_as_merged(merged, record, "is missing") from None
        target = folder / record["file"]
        try:
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(source, target)
        except OSError as error:
            raise _failed(target, error) from error
        if _record(target)["sha256"] != record["sha256"]:
            raise _not_as_merged(merged, record, "is not what was merged: its sha256 differs from the receipt's")


def records(folder: Path, plan: Plan, earlier: Mapping[str, Any] | None = None) -> list[Record]:
    """What the receipt says of the heads in a merged folder, in merge order: also of those carried over.

    ``earlier`` is the receipt of the merge that this one goes on from.
    """
    found = [_record(path) for path in sorted((folder / FOLDER).glob("*.safetensors"))]
    models = _models_now(plan, earlier) if earlier else {}
    found = [record | {"model": models.get(record["name"], record["model"])} for record in found]
    order = {source.ref.text: place for place, source in enumerate(plan.merged_models)}
    return sorted(found, key=lambda record: order.get(record["model"], len(order)))


def _models_now(plan: Plan, earlier: Mapping[str, Any]) -> Record:
    """By head of an earlier merge, its model as this one writes it: a folder may be written in several ways."""
    now = zip((source["model"] for source in earlier["models"]), plan.merged_models, strict=False)
    written = {before: source.ref.text for before, source in now}
    return {head["name"]: written.get(head["model"], head["model"]) for head in earlier.get("heads", [])}


def _record(path: Path) -> Record:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    facts = json.loads(read_header(path, path.name)[0])["__metadata__"]
    config = json.loads(facts["config"])
    return {
        "name": path.stem,
        "model": facts["model"],
        "architecture": facts["architecture"],
        "file": f"{FOLDER}/{path.name}",
        "bytes": path.stat().st_size,
        "sha256": digest,
        "labels": labels(config, facts["architecture"]),
        "first_labels": first_labels(config, _LABELS_SHOWN),
    }


def _announced(plan: Plan, models: Sequence[Checkpoint]) -> list[tuple[Head, Checkpoint]]:
    """Every head with its model, which has been told what will be read of it."""
    by_key = {model.ref.key: model for model in models}
    pairs = [(head, by_key[head.ref.key]) for head in plan.heads]
    announce((read for pair in pairs for read in _reads(*pair)), plan.stream_bytes)
    return pairs


def _reads(head: Head, model: Checkpoint) -> Iterator[Read]:
    for spec in head.tensors:
        step = max(1, BLOCK_ELEMENTS * spec.rows // max(1, spec.numel))
        for start in range(0, spec.rows if spec.numel else 0, step):
            yield model, spec.name, (start, min(spec.rows, start + step))


def _blocks(head: Head, model: Checkpoint) -> Iterator[tuple[Checkpoint, str, torch.Tensor]]:
    """Everything a head holds, in the order of its file, some rows at a time."""
    for checkpoint, name, rows in _reads(head, model):
        yield checkpoint, name, checkpoint.read(name, rows)


def _write(path: Path, head: Head, model: Checkpoint) -> None:
    beside = path.with_name(f"{path.name}.new")  # it is there whole or not at all
    try:
        path.parent.mkdir(exist_ok=True)
        with beside.open("wb") as stream:
            for part in _parts(head, model):
                stream.write(part)
        beside.rename(path)
    except OSError as error:
        raise _failed(path, error) from error


def _parts(head: Head, model: Checkpoint) -> Iterator[bytes | memoryview]:
    facts = {
        "format": "pt",
        "architecture": head.architecture,
        "model": head.ref.text,
        "config": json.dumps(dict(head.config), ensure_ascii=False),
    }
    yield build_header([(spec.name, spec.dtype, spec.shape) for spec in head.tensors], facts)
    for _, name, block in _blocks(head, model):
        yield bytes_of(block.to(torch_dtype(model.specs[name].dtype)))  # an adapter's comes in float32


def _failed(path: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot write {path}", [Problem("", error.strerror or str(error))])


def _not_as_merged(merged: Checkpoint, record: Mapping[str, Any], what: str) -> CheckpointError:
    problem = Problem(record["file"], what, "Fetch that model again.")
    return CheckpointError(f"{merged.ref.short}: a head cannot be carried over", [problem])
