"""Several adapters of one base as one: which modules that has, and what each adapter adds to them.

Knows no methods. Touches no tensor of the base.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dopkit.checkpoints.adapter import AdapterCheckpoint
from dopkit.checkpoints.adapter_names import is_embedding, module_of
from dopkit.checkpoints.deltas import LowRank
from dopkit.errors import MergeError, Problem
from dopkit.refs import ModelRef

if TYPE_CHECKING:
    import torch

    from dopkit.linalg.factors import Factors


@dataclass(frozen=True)
class Joined:
    """One module of the adapter that is made: its factors, of which adapter each piece is, and the rank it gets."""

    tensor: str  # of the base
    module: str  # as the first adapter that has it spells it
    embedding: bool
    outputs_last: bool
    pieces: tuple[tuple[int, LowRank], ...]  # which adapter, in merge order, and its product
    a_shape: tuple[int, ...]
    b_shape: tuple[int, ...]
    rank: int

    @property
    def together(self) -> int:
        """The ranks of all pieces added up."""
        return sum(product.rank for _, product in self.pieces)

    @property
    def full(self) -> int:
        """The most that a rank can be: of what they add up to, or of the matrix if that is less."""
        return min(self.together, self.b_shape[0], math.prod(self.a_shape[1:]))

    @property
    def a(self) -> str:
        """The name that PEFT gives the first factor, which takes the inputs in."""
        return f"base_model.model.{self.module}.lora_" + ("embedding_A" if self.embedding else "A.weight")

    @property
    def b(self) -> str:
        return f"base_model.model.{self.module}.lora_" + ("embedding_B" if self.embedding else "B.weight")


def join(adapters: Sequence[AdapterCheckpoint], rank: int | None) -> tuple[list[Joined], list[Problem]]:
    """The modules of the adapter that the ``adapters`` make together, each of at most ``rank``; and what cannot be."""
    problems = [problem for adapter in adapters for problem in _unfit(adapter, adapters[0])]
    if problems:
        return [], problems
    pieces: dict[str, list[tuple[int, LowRank]]] = {}
    for index, adapter in enumerate(adapters):
        for name, change in adapter.changes.items():
            pieces.setdefault(name, []).extend((index, product) for product in change.low_rank)
    modules: dict[str, Joined] = {}
    for name, own in pieces.items():
        joined = _joined(name, own, adapters, rank)
        modules.setdefault(joined.module, joined)  # a tied tensor stored twice is one module
    return [modules[module] for module in sorted(modules)], []


def _joined(
    name: str, own: list[tuple[int, LowRank]], adapters: Sequence[AdapterCheckpoint], rank: int | None
) -> Joined:
    index, first = own[0]
    specs = adapters[index].adapter.specs
    a, b = specs[first.a].shape, specs[first.b].shape
    # more than that adds nothing
    full = min(b[0], math.prod(a[1:]))
    kept = min(sum(product.rank for _, product in own), full, rank or full)
    embedding = is_embedding(first.a)
    outputs_last = first.layout == "columns" and not embedding
    module = module_of(first.a)
    return Joined(name, module, embedding, outputs_last, tuple(own), (kept, *a[1:]), (b[0], kept, *b[2:]), kept)


def _unfit(adapter: AdapterCheckpoint, first: AdapterCheckpoint) -> list[Problem]:
    """What of an adapter cannot be kept as two factors for each module."""
    shown = adapter.ref.short
    if adapter.base.ref.key != first.base.ref.key:
        return [Problem(shown, f"stands on another base than {first.ref.short}")]
    found = []
    changes = adapter.changes.items()
    if any(product.magnitude for _, change in changes for product in change.low_rank):
        found.append(Problem(shown, "is a DoRA, whose norms are no product of factors"))
    if adapter.lora.target_parameters:
        found.append(Problem(shown, "has target_parameters, which are not joined"))
    if both := [name for name, change in changes if change.whole and change.low_rank]:
        remedy = "Save it with `save_embedding_layers=False`, if that embedding was not trained or resized."
        found.append(Problem(shown, f"stores a whole embedding beside its factors: {', '.join(both)}", remedy))
    if other := [name for name, change in changes if (change.whole or change.rest) and name not in both]:
        more = f" and {len(other) - 5} more" if len(other) > 5 else ""
        found.append(Problem(shown, f"changes more than by factors: {', '.join(other[:5])}{more}"))
    return found


def products(joined: Joined, adapters: Sequence[AdapterCheckpoint]) -> list[Factors]:
    """What each adapter adds to a module, (outputs, inputs) in float32; of rank 0 where it adds nothing.

    Raises MergeError when a factor is not finite.
    """
    import torch

    from dopkit.linalg.factors import Factors

    outputs, inputs = joined.b_shape[0], math.prod(joined.a_shape[1:])
    b = [[torch.zeros(outputs, 0)] for _ in adapters]
    a = [[torch.zeros(0, inputs)] for _ in adapters]
    for index, product in joined.pieces:
        own = adapters[index]
        b[index].append(_finite(own, product.b).reshape(outputs, product.rank) * product.scale)
        a[index].append(_finite(own, product.a).reshape(product.rank, inputs))
    return [Factors(torch.cat(ones, dim=1), torch.cat(others)) for ones, others in zip(b, a, strict=True)]


def _finite(adapter: AdapterCheckpoint, name: str) -> torch.Tensor:
    """A factor in float32."""
    import torch

    factor = adapter.adapter.read(name).to(torch.float32)
    if not bool(torch.isfinite(factor).all()):
        what = f"{name} holds values that are NaN or infinite"
        remedy = "Fetch the adapter again, or leave it out."
        raise MergeError("an adapter cannot be merged", [Problem(adapter.ref.short, what, remedy)])
    return factor


def adapter_config(modules: Sequence[Joined], base: ModelRef, named: str | None, task: str | None) -> dict[str, Any]:
    """The ``adapter_config.json`` of what was joined: a plain LoRA whose scale is 1 everywhere."""
    ranks = [joined.rank for joined in modules]
    common = max(set(ranks), key=lambda rank: (ranks.count(rank), rank))
    own = {joined.module: joined.rank for joined in modules if joined.rank != common}
    return {
        "peft_type": "LORA",
        "task_type": task,
        "base_model_name_or_path": base.repo or named,
        "revision": base.revision if base.repo else None,
        "r": common,
        "lora_alpha": common,
        "rank_pattern": own,
        "alpha_pattern": own,
        "target_modules": [joined.module for joined in modules],
        "fan_in_fan_out": any(joined.outputs_last for joined in modules),
        "bias": "none",
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
