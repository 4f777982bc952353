"""The parameters of the methods that interpolate between models: mergekit's names and defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from pydantic import Field

from dopkit.methods.delta_parameters import LOST, ZERO
from dopkit.methods.parameters import Parameters


class LinearParameters(Parameters):
    """mergekit's names; a weight has no default."""

    per_model: ClassVar[frozenset[str]] = frozenset({"weight"})
    required: ClassVar[frozenset[str]] = frozenset({"weight"})

    weight: float | None = Field(None, description="what a model is multiplied by")
    normalize: bool = Field(True, description="divide the sum by the sum of the weights")

    @classmethod
    def together(cls, models: Sequence[Self]) -> str:
        return ZERO if models[0].normalize and sum(model.weight or 0.0 for model in models) == 0 else ""


class PassthroughParameters(Parameters):
    """mergekit's name."""

    per_model: ClassVar[frozenset[str]] = frozenset({"scale"})
    whole_model: ClassVar[frozenset[str]] = frozenset()

    scale: float = Field(1.0, description="what the model is multiplied by")


class SlerpParameters(Parameters):
    """mergekit's name; it has no default."""

    t: float = Field(description="0: the base; 1: the model")


class NuslerpParameters(Parameters):
    """mergekit's names."""

    per_model: ClassVar[frozenset[str]] = frozenset({"weight"})
    required: ClassVar[frozenset[str]] = frozenset({"weight"})

    weight: float | None = Field(None, description="of a model; t is the second one's share in their sum")
    nuslerp_flatten: bool = Field(True, description="a tensor is one vector; else each of its rows or columns is one")
    nuslerp_row_wise: bool = Field(
        False,
        description="with nuslerp_flatten: false, false takes vectors along the last axis, true along the first: what "
        "mergekit does, if not what the name says",
    )

    @classmethod
    def unread(cls, given: Mapping[str, Any]) -> dict[str, str]:
        flat = given.get("nuslerp_flatten", True)
        return {"nuslerp_row_wise": "with nuslerp_flatten a tensor is one vector"} if flat else {}


class MultislerpParameters(Parameters):
    """mergekit's names."""

    per_model: ClassVar[frozenset[str]] = frozenset({"weight"})
    required: ClassVar[frozenset[str]] = frozenset({"weight"})

    weight: float | None = Field(None, description="of a model in the mean of the directions and of the lengths")
    normalize_weights: bool = Field(True, description="divide the weights by their sum")
    eps: float = Field(1e-8, gt=0, description="a vector shorter than this has no direction")

    @classmethod
    def together(cls, models: Sequence[Self]) -> str:
        zero = sum(model.weight or 0.0 for model in models) == 0
        return "their weights add up to zero" if models[0].normalize_weights and zero else ""

    def without_state(self) -> tuple[Self, str] | None:
        return self, LOST


class KarcherParameters(Parameters):
    """mergekit's names."""

    max_iter: int = Field(10, ge=1, description="steps at most")
    tol: float = Field(1e-5, gt=0, description="the search ends with a step shorter than this, in radians")


class ModelStockParameters(Parameters):
    """mergekit's name."""

    filter_wise: bool = Field(False, description="an angle for each row of a tensor, instead of one for all of it")

    def without_state(self) -> tuple[Self, str] | None:
        return self, LOST


class NearswapParameters(Parameters):
    """mergekit's name; it has no default."""

    t: float = Field(ge=0, description="how far an entry may move from the base towards the model")


class ArceeFusionParameters(Parameters):
    """There is nothing to set."""
