"""The parameters of the methods that add up task vectors, trimmed or not: mergekit's names and defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

from pydantic import Field, model_validator

from dopkit.methods.parameters import Parameters

LOST = "the sums over the earlier models were not kept, so what was merged of them counts as one model"
ZERO = "their weights add up to zero, so there is no mean of them: change one, or set `normalize: false`"


class SumParameters(Parameters):
    """Weighted sums of task vectors."""

    per_model: ClassVar[frozenset[str]] = frozenset({"weight"})

    weight: float = Field(1.0, description="what a model's task vector is multiplied by")
    lambda_: float = Field(1.0, alias="lambda", description="what their weighted sum is multiplied by")
    normalize: bool = Field(False, description="divide the sum by the sum of the weights")

    @classmethod
    def together(cls, models: Sequence[Self]) -> str:
        return ZERO if models[0].normalize and sum(model.weight for model in models) == 0 else ""


class TaskArithmeticParameters(SumParameters):
    """Nothing but the sum."""


class ElectionParameters(Parameters):
    """A sign is elected for every entry, and the task vectors that agree with it are added up."""

    per_model: ClassVar[frozenset[str]] = frozenset({"weight", "density"})

    density: float = Field(1.0, ge=0, le=1, description="share of each tensor's entries that are kept")
    weight: float = Field(1.0, description="weight of a model in the election and in the sum")
    lambda_: float = Field(1.0, alias="lambda", description="what the merged task vector is multiplied by")
    normalize: bool = Field(
        True, description="divide by the sum of the weights of the models that agree with the elected sign"
    )

    def without_state(self) -> tuple[Self, str]:
        return self, LOST


class TiesParameters(ElectionParameters):
    """mergekit's defaults: without a density nothing is trimmed. The paper's density is 0.2."""

    density: float = Field(
        1.0, ge=0, le=1, description="share of each tensor's entries, those of largest magnitude, that are kept"
    )
    rescale: bool = Field(False, description="restore the sum of the magnitudes of each tensor after trimming")


class DropParameters(Parameters):
    """What DARE's two forms share."""

    per_model: ClassVar[frozenset[str]] = frozenset({"weight", "density"})

    density: float = Field(1.0, ge=0, le=1, description="chance of each entry to be kept")
    rescale: bool = Field(True, description="divide what is kept by its chance, so that the expectation stays")


class DareParameters(DropParameters, SumParameters):
    """Of `dare_linear`."""


class DareTiesParameters(DropParameters, ElectionParameters):
    """Of `dare_ties`; mergekit divides nothing by default."""

    normalize: bool = Field(
        False, description="divide by the sum of the weights of the models that agree with the elected sign"
    )


class RankedDropParameters(DropParameters):
    """What DELLA's two forms share."""

    per_model: ClassVar[frozenset[str]] = frozenset({"weight", "density", "epsilon"})

    density: float = Field(1.0, ge=0, le=1, description="mean chance of an entry to be kept")
    epsilon: float = Field(
        0.15,
        ge=0,
        le=0.5,
        description="by how much the chance of a row's largest entry is above density, and that of its smallest below; "
        "no matter at density: 1",
    )

    @model_validator(mode="after")
    def _chances(self) -> Self:
        low, high = self.density - self.epsilon, self.density + self.epsilon
        if 0 < self.density < 1 and (low <= 0 or high > 1 + 1e-9):
            raise ValueError(f"chances from {low:g} to {high:g}: density - epsilon must be above 0, density + epsilon "
                             "at most 1")  # fmt: skip
        return self


class DellaLinearParameters(RankedDropParameters, SumParameters):
    """Of `della_linear`."""


class DellaParameters(RankedDropParameters, ElectionParameters):
    """Of `della`."""


class MiddleParameters(Parameters):
    """What the two forms of Model Breadcrumbs share."""

    per_model: ClassVar[frozenset[str]] = frozenset({"weight", "density", "gamma"})

    density: float = Field(1.0, ge=0, le=1, description="share of each tensor's entries that are kept")
    gamma: float = Field(
        0.01, ge=0, lt=1, description="share of each tensor's entries, those of largest magnitude, that are removed"
    )
    rescale: bool = Field(False, description="restore the sum of the magnitudes of each tensor after trimming")


class BreadcrumbsParameters(MiddleParameters, SumParameters):
    """Of `breadcrumbs`."""


class BreadcrumbsTiesParameters(MiddleParameters, ElectionParameters):
    """Of `breadcrumbs_ties`; mergekit divides nothing by default."""

    normalize: bool = Field(
        False, description="divide by the sum of the weights of the models that agree with the elected sign"
    )


class SceParameters(Parameters):
    """mergekit's name."""

    select_topk: float = Field(
        1.0, gt=0, le=1, description="share of each tensor's entries, those that vary most among models, that are kept"
    )


class RamParameters(Parameters):
    """mergekit's name."""

    epsilon: float = Field(
        1e-5, ge=0, description="a model changed the entries that are further than this from the base"
    )

    def without_state(self) -> tuple[Self, str] | None:
        return self, LOST


class RamPlusParameters(Parameters):
    """mergekit's names."""

    epsilon: float = Field(
        1e-5, ge=0, description="a model changed the entries that are further than this from the base"
    )
    r: float = Field(0.1, ge=0, description="how much a model's own entries grow with its share of common ones")
    alpha: float = Field(0.2, ge=0, description="the largest such share that counts")
