"""How the task vectors relate, read with suspicion: whole model, by layer, and the tensors that changed most.

The layout is that of ``receipt["relations"]``. Numbers only: knows no markup.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import combinations
from statistics import fmean
from typing import Any, Self

from pydantic import BaseModel, model_validator

from dopkit.report.checked import Number, checked
from dopkit.report.layers import located
from dopkit.roles import Role


class TensorRelation(BaseModel):
    norms: list[Number]
    base_norm: Number = None
    cosines: list[list[Number]]
    ranks: list[Number] | None = None
    full_rank: Number = None

    @property
    def change(self) -> float | None:
        """The largest task vector's norm as a share of the base's."""
        norms = [norm for norm in self.norms if norm is not None]
        return max(norms) / self.base_norm if norms and self.base_norm else None


class Relations(BaseModel):
    models: list[str]
    norms: list[Number]  # Frobenius, over all merged tensors
    base_norm: Number = None
    cosines: list[list[Number]]
    energy: Number = None  # the share of the singular values' sum that a rank stands for
    tensors: dict[str, TensorRelation] = {}

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        sizes = {len(self.norms), len(self.cosines), *(len(row) for row in self.cosines)}
        for tensor in self.tensors.values():
            sizes |= {len(tensor.norms), len(tensor.cosines), *(len(row) for row in tensor.cosines)}
            sizes |= set() if tensor.ranks is None else {len(tensor.ranks)}
        if sizes - {len(self.models)}:
            raise ValueError("norms and cosines are not those of the models")
        return self

    def by_layer(self) -> dict[int, tuple[list[float | None], float | None]]:
        """Layer to each model's norm as a share of the base's, and the mean of all pairs' cosines.

        Layers of several stacks (text and vision) that have one number are taken together.
        """
        layers: dict[int, list[TensorRelation]] = {}
        for name, tensor in self.tensors.items():
            if (found := located(name, Role.PARAMETER)) is not None and found.layer is not None:
                layers.setdefault(found.layer, []).append(tensor)
        return {layer: (self._shares(layers[layer]), self._mean_cosine(layers[layer])) for layer in sorted(layers)}

    def rank_share(self, index: int) -> float | None:
        """The mean rank of a model's task vectors as a share of full rank; None when ranks are not known."""
        shares = [
            rank / tensor.full_rank
            for tensor in self.tensors.values()
            if tensor.ranks is not None and tensor.full_rank and (rank := tensor.ranks[index]) is not None
        ]
        return fmean(shares) if shares else None

    def most_changed(self, most: int) -> list[tuple[str, TensorRelation]]:
        """Matrices and vectors by the largest task vector relative to the base."""
        found = [(name, tensor) for name, tensor in self.tensors.items() if tensor.change]
        return sorted(found, key=lambda pair: -(pair[1].change or 0.0))[:most]

    def _shares(self, tensors: list[TensorRelation]) -> list[float | None]:
        base = _length(tensor.base_norm for tensor in tensors)
        lengths = [_length(tensor.norms[index] for tensor in tensors) for index in range(len(self.models))]
        return [length / base if base else None for length in lengths]

    def _mean_cosine(self, tensors: list[TensorRelation]) -> float | None:
        """Over all pairs of models; the cosine of a pair is that of these tensors taken as one vector."""
        lengths = [_length(tensor.norms[index] for tensor in tensors) for index in range(len(self.models))]
        pairs = []
        for one, other in combinations(range(len(self.models)), 2):
            inner = sum(_inner(tensor, one, other) for tensor in tensors)
            if lengths[one] and lengths[other]:
                pairs.append(inner / (lengths[one] * lengths[other]))
        return fmean(pairs) if pairs else None


def read(data: Any) -> Relations | None:
    """The relations inside a receipt, or None when there are none. Raises OutputError when they are damaged."""
    return checked(Relations, data, "the relations of the task vectors")


def _length(norms: Iterable[float | None]) -> float:
    return math.sqrt(sum(norm**2 for norm in norms if norm is not None))


def _inner(tensor: TensorRelation, one: int, other: int) -> float:
    """The inner product of two task vectors; a zero vector has no cosine, and adds nothing."""
    return (tensor.cosines[one][other] or 0.0) * (tensor.norms[one] or 0.0) * (tensor.norms[other] or 0.0)
