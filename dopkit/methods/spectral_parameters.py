"""The parameters of the methods that work on singular values. Loads no torch."""

from __future__ import annotations

from typing import Self

from pydantic import Field

from dopkit.methods.continual_parameters import MatrixParameters
from dopkit.methods.delta_parameters import LOST


class TsvParameters(MatrixParameters):
    """The published method has nothing to set but a factor."""

    lambda_: float = Field(1.0, alias="lambda", description="what the merged task vector is multiplied by")


class IsoCParameters(MatrixParameters):
    """As above; published runs use factors a little above 1."""

    lambda_: float = Field(1.0, alias="lambda", description="what the merged task vector is multiplied by")

    def without_state(self) -> tuple[Self, str] | None:
        return self, LOST


class IsoCtsParameters(MatrixParameters):
    """As above, and what is left to the single tasks."""

    lambda_: float = Field(1.0, alias="lambda", description="what the merged task vector is multiplied by")
    common_share: float = Field(
        0.8,
        gt=0,
        le=1,
        description="share of the directions that the sum of the task vectors has; tasks share the rest",
    )


class AceParameters(MatrixParameters):
    """The published ones, but for what becomes of GPT-2 and RoBERTa, for which epsilon was 4e-2 and 2e-4."""

    epsilon: float = Field(1e-5, gt=0, description="added to the diagonal of every task's covariance")
    gamma: float = Field(
        0.3, ge=0, description="relative variance of the task vectors' sizes above which they are evened out"
    )
    k_share: float = Field(
        0.3, ge=0, le=1, description="share of the directions that are strengthened where sizes are evened out"
    )

    def without_state(self) -> tuple[Self, str] | None:
        return self, LOST
