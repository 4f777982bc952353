"""How the task vectors of several models relate: norms, cosines, ranks; of a tensor, a group of them, the whole model.

Holds what ``engine.relating`` measured, in plain numbers. A task vector is a model's weights minus the base's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any, TypeVar

from dopkit.places import Place

Group = TypeVar("Group", bound=Hashable)


@dataclass(frozen=True)
class Products:
    """Inner products (Frobenius) of T task vectors: they add up over tensors, and hold norms and cosines."""

    inner: Sequence[Sequence[float]]  # (T, T)
    base: float  # of the base with itself

    @property
    def norms(self) -> list[float]:
        return [math.sqrt(row[index]) for index, row in enumerate(self.inner)]

    @property
    def base_norm(self) -> float:
        return math.sqrt(self.base)

    @property
    def relative(self) -> list[float | None]:
        """The norms as shares of the base's; None where that is zero."""
        return [norm / self.base_norm if self.base_norm else None for norm in self.norms]

    @property
    def cosines(self) -> list[list[float | None]]:
        """(T, T), exactly symmetric; None where a task vector is zero."""
        norms, size = self.norms, range(len(self.inner))
        return [[_cosine(self.inner[min(i, j)][max(i, j)], norms[i], norms[j], i == j) for j in size] for i in size]

    @property
    def pairs(self) -> list[tuple[float, int, int]]:
        """(cosine, i, j) for i < j, where it is known."""
        cosines = self.cosines
        return [
            (cosine, i, j)
            for i in range(len(cosines))
            for j in range(i + 1, len(cosines))
            if (cosine := cosines[i][j]) is not None
        ]


def _cosine(inner: float, one: float, other: float, same: bool) -> float | None:
    if not one or not other:
        return None
    return 1.0 if same else max(-1.0, min(1.0, inner / (one * other)))


@dataclass(frozen=True)
class TensorRelations:
    """One merged tensor."""

    name: str  # as the base spells it
    place: Place
    shape: tuple[int, ...]
    products: Products
    # Per model, how many leading singular values of the task vector hold the energy; of fused experts the mean over
    # the slices. None for what is no matrix, or when ranks were not asked for.
    ranks: Sequence[float] | None = None

    @property
    def full_rank(self) -> int:
        """The rank that a matrix of this shape can have."""
        return min(self.shape[-2:])

    @property
    def rank_shares(self) -> list[float] | None:
        """The ranks as shares of the full rank."""
        return None if self.ranks is None else [rank / self.full_rank for rank in self.ranks]

    def as_data(self) -> dict[str, Any]:
        ranks = {"ranks": None} if self.ranks is None else {"ranks": list(self.ranks), "full_rank": self.full_rank}
        return _as_data(self.products) | ranks


@dataclass(frozen=True)
class Relations:
    """All merged tensors of the models ``models`` (short names, in merge order)."""

    models: tuple[str, ...]
    tensors: tuple[TensorRelations, ...]
    energy: float | None  # the share of the sum of singular values that a rank stands for; None without ranks

    @cached_property
    def products(self) -> Products:
        """Of the whole model."""
        return total((tensor.products for tensor in self.tensors), len(self.models))

    @cached_property
    def rank_shares(self) -> list[float] | None:
        """Per model, the mean share of the full rank over all matrices."""
        return mean_shares(self.tensors)

    def groups(self, key: Callable[[Place], Group]) -> dict[Group, list[TensorRelations]]:
        """The tensors by what ``key`` says of their place, in order of first appearance."""
        found: dict[Group, list[TensorRelations]] = {}
        for tensor in self.tensors:
            found.setdefault(key(tensor.place), []).append(tensor)
        return found

    def as_data(self) -> dict[str, Any]:
        """As the receipt holds it: only JSON types, unknown numbers are null."""
        return {
            "models": list(self.models),
            "energy": self.energy,
            **_as_data(self.products),
            "tensors": {tensor.name: tensor.as_data() for tensor in self.tensors},
        }


def total(products: Iterable[Products], models: int) -> Products:
    """The sum over tensors."""
    inner, base = [[0.0] * models for _ in range(models)], 0.0
    for one in products:
        base += one.base
        for row, more in zip(inner, one.inner, strict=True):
            row[:] = (value + added for value, added in zip(row, more, strict=True))
    return Products(inner, base)


def mean_shares(tensors: Iterable[TensorRelations]) -> list[float] | None:
    """Per model, the mean of the rank shares of those tensors that have ranks; None when none has."""
    shares = [shares for tensor in tensors if (shares := tensor.rank_shares) is not None]
    return [fmean(column) for column in zip(*shares, strict=True)] if shares else None


def _as_data(products: Products) -> dict[str, Any]:
    return {"norms": products.norms, "base_norm": products.base_norm, "cosines": products.cosines}
