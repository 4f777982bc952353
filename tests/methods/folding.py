"""Folding models in plain code, for the tests of methods: seeded matrices, and merges whole or split."""

from __future__ import annotations

from typing import Any

import torch

from dopkit.methods import Rule, mergekit_rules, rules
from dopkit.methods.fold import Context
from dopkit.methods.parameters import Parameters
from dopkit.roles import Role

Records = list[dict[str, Any]]


def every_rule() -> list[Rule]:
    """Of the built-in methods, each once."""
    found: dict[int, Rule] = {}
    for module in (rules, mergekit_rules):
        for value in vars(module).values():
            values = value.values() if isinstance(value, dict) else [value]
            found |= {id(rule): rule for rule in values if isinstance(rule, Rule)}
    return list(found.values())


def beside(rule: Rule, model: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a rule reads beside a model, made of the model's own entries: positive, and other than the next one's."""
    return {part: 0.1 + model.square() for part in rule.companions}


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


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
    names: list[str] | None = None,
    **known: Any,
) -> tuple[torch.Tensor, Records]:
    """The merge of ``models`` and what was recorded; leaves its arguments as they are.

    ``parameters`` may be one for each model. ``split``: after so many models the state is packed, copied and unpacked
    by a new fold. ``look``: ``finish`` is called after every step. ``names``: of the models, else their numbers;
    ``known``: what else the context holds,
    ``companions`` for each model.
    """
    each = parameters if isinstance(parameters, list) else [parameters] * len(models)
    records: Records = []
    whole = known.pop("companions", None) or [beside(rule, model) for model in models]
    folding, kept = rule.load(), base.clone()
    state: Any = None
    for step, (model, own, also) in enumerate(zip(models, each, whole, strict=True), start=1):
        known["companions"] = {name: tensor.clone() for name, tensor in also.items()}
        model_name = names[step - 1] if names else str(step)
        context = Context(own, role, step, records.append, tuple(each[:step]), model=model_name, **known)
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


def join(
    rule: Rule,
    parameters: Parameters | list[Parameters],
    base: torch.Tensor,
    models: list[torch.Tensor],
    role: Role = Role.LINEAR,
) -> tuple[torch.Tensor, Records]:
    """The same by a rule that merges all models at once."""
    each = parameters if isinstance(parameters, list) else [parameters] * len(models)
    records: Records = []
    contexts = [Context(own, role, step, records.append, tuple(each[:step])) for step, own in enumerate(each, start=1)]
    given = [base, *models]
    kept = [tensor.clone() for tensor in given]
    result = rule.load_joint().merge(base if rule.needs_base else None, models, contexts)
    assert all(torch.allclose(one, other, 0, 0, equal_nan=True) for one, other in zip(given, kept, strict=True)), (
        "an input was written to"
    )
    assert not any(tensor.numel() and result.data_ptr() == tensor.data_ptr() for tensor in given), "an input came back"
    assert (result.shape, result.dtype) == (base.shape, base.dtype)
    return result, records
