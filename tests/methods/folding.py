"""Folding models in plain code, for the tests of methods: seeded matrices, and merges whole or split."""

from __future__ import annotations

from typing import Any

import torch

from dopkit.methods import Rule
from dopkit.methods.fold import Context
from dopkit.methods.parameters import Parameters
from dopkit.roles import Role

Records = list[dict[str, Any]]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def family(
    *shape: int, count: int = 3, size: float = 0.02, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A base and ``count`` models whose task vectors have this size, relative to the base's."""
    base = normal(*shape, seed=seed)
    models = [base + size * normal(*shape, seed=seed + 1 + number) for number in range(count)]
    return base.to(dtype), [model.to(dtype) for model in models]


def fold(
    rule: Rule,
    parameters: Parameters | list[Parameters],
    base: torch.Tensor,
    models: list[torch.Tensor],
    role: Role = Role.LINEAR,
    split: int | None = None,
    look: bool = False,
) -> tuple[torch.Tensor, Records]:
    """The merge of ``models`` and what was recorded; leaves its arguments as they are.

    ``parameters`` may be one for each model. ``split``: after so many models the state is packed, copied and unpacked
    by a new fold. ``look``: ``finish`` is called after every step.
    """
    each = parameters if isinstance(parameters, list) else [parameters] * len(models)
    records: Records = []
    folding, kept = rule.load(), base.clone()
    state: Any = None
    for step, (model, own) in enumerate(zip(models, each, strict=True), start=1):
        context = Context(own, role, step, records.append)
        state = folding.step(state, model.clone(), context) if step > 1 else folding.start(base, model.clone(), context)
        if look:
            folding.finish(state, context)
        if step == split:
            packed = {name: tensor.clone() for name, tensor in folding.pack(state).items()}
            folding = rule.load()
            state = folding.unpack(base, packed, context)
    result = folding.finish(state, context).clone()
    assert torch.equal(base, kept), "the base was written to"
    assert (result.shape, result.dtype) == (base.shape, base.dtype)
    return result, records


def distance(found: torch.Tensor, want: torch.Tensor, base: torch.Tensor) -> float:
    """How far ``found`` is from ``want``, relative to the norm of its task vector."""
    return float((found.double() - want.double()).norm() / (want.double() - base.double()).norm())
