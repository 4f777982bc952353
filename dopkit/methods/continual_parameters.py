"""The parameters of the continual methods beside DOP. Loads no torch."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field

from dopkit.methods.delta_parameters import LOST
from dopkit.methods.parameters import Parameters, Patterns, ScaleOrNorm, scale_field


class OpcmParameters(Parameters):
    """The published method's one parameter, and how its rank is counted."""

    alpha: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of the merged task vector's sum of singular values whose directions are closed to the "
        "incoming one",
    )
    rank_rule: Literal["at-least", "below"] = Field(
        "at-least",
        description="at-least: the fewest triplets that hold alpha; below: one fewer, as the reference code counts",
    )


class MagMaxParameters(Parameters):
    """The published scaling under mergekit's name for one."""

    lambda_: float = Field(0.5, gt=0, alias="lambda", description="what the merged task vector is multiplied by")


class MatrixParameters(Parameters):
    """What methods share that merge matrices in their own way and leave the rest to another rule."""

    other: Literal["mean", "half", "base"] = Field(
        "mean",
        description="what is done with tensors that are no matrices: running mean over the models so far, half and "
        "half at every step, or as the base has them",
    )
    exclude: Patterns = Field((), description="name patterns of matrices to treat as 'other' says")


class WudiParameters(MatrixParameters):
    """The published objective has nothing to set but when to stop, whose place the ridge takes."""

    ridge: float = Field(
        0.1,
        ge=0,
        description="weight of the distance to the mean of the task vectors, as a share of the objective's mean "
        "curvature; 0: the bare minimum, which may be far larger than any task vector",
    )
    scale: ScaleOrNorm = scale_field()

    def without_state(self) -> tuple[Self, str]:
        return self, LOST


class NullspaceParameters(MatrixParameters):
    """How much of the merged task vector is closed to the incoming one."""

    svd_epsilon: float = Field(
        0.3,
        gt=0,
        le=1,
        description="share of the merged task vector's sum of singular values whose input directions are closed to "
        "the incoming one",
    )
    rank_rule: Literal["at-least", "below"] = Field(
        "at-least", description="at-least: the fewest directions that hold svd_epsilon; below: one fewer"
    )
