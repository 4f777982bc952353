"""A plan in the making, and the tensors of its result before they have a rule. Data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dopkit.errors import Problem
from dopkit.planning import Continuation, Dropped, Head, Input, TensorJob
from dopkit.planning.matching import Model
from dopkit.recipe import Recipe

Settings = Mapping[str, Any]


@dataclass
class Making:
    """A plan in the making."""

    recipe: Recipe
    donor: Model
    models: Sequence[Model]
    continues: Continuation | None = None
    jobs: list[TensorJob] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    heads: tuple[Head, ...] = ()
    layers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # as in Plan
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True)
class Target:
    """A tensor of the result, before it has a rule."""

    name: str  # as it is written
    canonical: str
    like: tuple[Model, str]  # whose dtype, shape and role it takes, and what it is called there
    depth: float  # among the layers
    base: str | None  # in the donor's spelling
    inputs: tuple[tuple[Input, tuple[Settings, ...]], ...]  # with their own parameters, the widest first
