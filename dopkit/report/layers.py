"""A receipt's matrices by layer and part, by step, and one by one. Numbers only: knows no markup.

Layers and parts are those of ``places``; a matrix without a number in its name stands in no layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from dopkit.places import Place, part_order, place_of
from dopkit.report.scales import finite
from dopkit.roles import Role

LOSSES = ("stability_before", "stability_after", "plasticity_before", "plasticity_after")
OBJECTIVE = ("objective_before", "objective_after")
_MOST_LAYERS = 10_000  # a number in a name that is larger counts something else


def located(name: str, role: str) -> Place | None:
    """Stack, layer and part of a tensor; None when it stands in no layer, or its role is none that is known."""
    try:
        found = place_of(name, Role(role))
    except ValueError:
        return None
    return None if found.layer is None or found.layer >= _MOST_LAYERS else found


@dataclass
class Tally:
    """Sums over matrices and steps. A loss is None when no step told it."""

    matrices: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    weights: list[float] = field(default_factory=list)
    ranks_merged: list[float] = field(default_factory=list)  # shares of the full rank, 0 to 1
    ranks_incoming: list[float] = field(default_factory=list)
    unmeasured: int = 0  # ranks whose full rank is not known
    seconds: float = 0.0

    def add(self, steps: Iterable[Mapping[str, Any]], shape: Sequence[int] | None) -> None:
        """Count one matrix with its steps; ``shape`` is its tensor's, for the full rank."""
        self.matrices += 1
        full = min(shape[-2:]) if shape and len(shape) >= 2 else 0
        for step in steps:
            for key in (*LOSSES, *OBJECTIVE):
                if (value := finite(step.get(key))) is not None:
                    self.sums[key] = self.sums.get(key, 0.0) + value
            if (weight := finite(step.get("weight"))) is not None:
                self.weights.append(weight)
            for key, ranks in (("rank_merged", self.ranks_merged), ("rank_incoming", self.ranks_incoming)):
                rank = finite(step.get(key))
                if rank is not None and full:
                    ranks.append(rank / full)
                elif rank is not None:
                    self.unmeasured += 1

    def mean(self, what: str) -> float | None:
        """The mean of ``weights``, ``ranks_merged`` or ``ranks_incoming``."""
        values: list[float] = getattr(self, what)
        return fmean(values) if values else None


@dataclass(frozen=True)
class Matrix:
    """One tensor whose steps were recorded."""

    name: str
    rule: str
    shape: Sequence[int] | None
    seconds: float
    before: float | None  # objective, summed over the steps
    after: float | None


@dataclass(frozen=True)
class Solved:
    """Everything the receipt tells about matrices."""

    parts: dict[str, dict[int, Tally]]  # part to layer to what happened there, over all steps
    by_part: dict[str, Tally]
    by_step: dict[int, Tally]
    matrices: list[Matrix]

    @property
    def layers(self) -> list[int]:
        """The numbers of the layers that there are, whatever the part."""
        return sorted({layer for layers in self.parts.values() for layer in layers})


def collect(tensors: Mapping[str, Mapping[str, Any]], shapes: Mapping[str, Sequence[int]]) -> Solved:
    """Sort the receipt's ``tensors`` with recorded steps. ``shapes`` may lack some."""
    solved = {name: tensor for name, tensor in tensors.items() if tensor.get("steps")}
    labels = _labels(solved)
    parts: dict[str, dict[int, Tally]] = {}
    by_part: dict[str, Tally] = {}
    by_step: dict[int, Tally] = {}
    matrices = []
    for name, tensor in solved.items():
        shape, seconds, total = shapes.get(name), finite(tensor.get("seconds")) or 0.0, Tally()
        total.add(tensor["steps"], shape)
        matrices.append(Matrix(name, str(tensor["rule"]), shape, seconds, *(total.sums.get(key) for key in OBJECTIVE)))
        targets = []
        if name in labels:
            part, layer = labels[name]
            targets.append(parts.setdefault(part, {}).setdefault(layer, Tally()))
            targets.append(by_part.setdefault(part, Tally()))
        for target in targets:
            target.add(tensor["steps"], shape)
            target.seconds += seconds
        for number in sorted({step["step"] for step in tensor["steps"] if isinstance(step.get("step"), int)}):
            own = [step for step in tensor["steps"] if step.get("step") == number]
            by_step.setdefault(number, Tally()).add(own, shape)
    order = sorted(parts, key=_rank)
    return Solved(
        {part: parts[part] for part in order}, {part: by_part[part] for part in order},
        dict(sorted(by_step.items())), matrices,
    )  # fmt: skip


def _labels(tensors: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[str, int]]:
    """Name to part and layer; a part is named with its stack when there are several stacks."""
    places = {name: found for name, tensor in tensors.items() if (found := located(name, tensor["role"])) is not None}
    stacks = {found.stack for found in places.values()}
    shortened = {stack: stack.partition(".")[0] for stack in stacks}
    if len(set(shortened.values())) < len(stacks):
        shortened = {stack: stack for stack in stacks}
    labels = {}
    for name, found in places.items():
        prefix = f"{shortened[found.stack]}: " if len(stacks) > 1 else ""
        labels[name] = (prefix + found.part, found.layer or 0)
    return labels


def _rank(label: str) -> tuple[str, int, str]:
    stack, _, part = label.rpartition(": ")
    return stack, *part_order(part)
