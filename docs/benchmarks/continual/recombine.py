"""From one merge the models of its other settings: another `other`, another `scale`.

A step's matrices depend on neither. What is no matrix is the mean, the half-and-half or the base's tensor whatever the
method; the scale multiplies the whole task vector at the end. harness.py checks what is put together here against what
dopkit makes itself, once for every merge.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from rows import Row
from safetensors.torch import load_file, save_file

Weights = dict[str, torch.Tensor]


def models(merged: Path, base: Path, experts: list[Path], row: Row, out: Path) -> list[Path]:
    """The folders of the models after every step, as `row` says; `merged` was made with --save-steps."""
    rules = {
        name: entry["rule"]
        for name, entry in json.loads((merged / "dopkit_receipt.json").read_text())["tensors"].items()
    }
    start = backbone(base, rules)
    folders = []
    others = _others(start, [backbone(expert, rules) for expert in experts], row.other)
    # What is taken from the base is no part of what is scaled, nor of the norms.
    scaled = [name for name in start if row.other != "base" or not _is_other(rules[name])]
    norms = []
    for step, (expert, rest) in enumerate(zip(experts, others, strict=True), start=1):
        source = merged if step == len(experts) else merged / f"steps/{step:02d}"
        weights = load_file(source / "model.safetensors")
        model = {name: weights[name] if not _is_other(rules[name]) else rest[name] for name in weights}
        norms.append(_distance(backbone(expert, rules), start, scaled))
        if row.scale == "norm" and step > 1 and (length := _distance(model, start, scaled)):
            scale = sum(norms) / step / length
            model |= {name: start[name] + scale * (model[name] - start[name]) for name in scaled}
        folders.append(write(out / f"{step:02d}", source, model))
    return folders


def backbone(folder: Path, names: dict[str, str]) -> Weights:
    """The tensors of a checkpoint under the base's names: an expert may have a prefix before them."""
    tensors = {
        name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()
    }
    found = {}
    for name in names:
        own = name if name in tensors else next(key for key in tensors if key.endswith(f".{name}"))
        found[name] = tensors[own].float()
    return found


def _others(base: Weights, experts: list[Weights], other: str | None) -> Iterator[Weights]:
    """What becomes, after every step, of the tensors that are no matrices."""
    so_far = base
    for count, expert in enumerate(experts, start=1):
        if other == "mean":
            so_far = {
                name: expert[name] if count == 1 else so_far[name] + (expert[name] - so_far[name]) / count
                for name in base
            }
        elif other == "half":
            so_far = {name: expert[name] if count == 1 else (so_far[name] + expert[name]) / 2 for name in base}
        yield so_far


def _is_other(rule: str) -> bool:
    return rule in ("mean", "half", "base")


def _distance(one: Weights, other: Weights, names: list[str]) -> float:
    return sum(float((one[name] - other[name]).double().square().sum()) for name in names) ** 0.5


def write(folder: Path, source: Path, weights: Weights) -> Path:
    folder.mkdir(parents=True)
    save_file(
        {name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    for file in source.iterdir():
        if file.is_file() and not file.name.startswith(("dopkit_", "model", "README", "report")):
            shutil.copyfile(file, folder / file.name)
    return folder
