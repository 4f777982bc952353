"""The parameters of every built-in method: defaults, bounds, and what each one means.

One declaration serves the recipe, ``dopkit methods`` and the method's own code. Loads no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


class Parameters(BaseModel):
    """Parameters of a method: frozen, and no key that the method does not read.

    Values are taken as they are: ``true`` is no number, ``"0.5"`` is no number either. A list needs ``Patterns``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)

    # The ones that an entry of ``models`` may set for the step that folds this model in.
    per_model: ClassVar[frozenset[str]] = frozenset()

    def in_force(self) -> dict[str, Any]:
        """Every parameter that has an effect, with its value, as YAML data: what a pinned recipe holds."""
        data = self.model_dump(mode="json")
        unread = self.unread(data)
        return {name: value for name, value in data.items() if name not in unread}

    @classmethod
    def unread(cls, given: Mapping[str, Any]) -> dict[str, str]:
        """The parameters that have no effect beside the other ones given, and why."""
        return {}

    @model_validator(mode="after")
    def _every_given_parameter_is_read(self) -> Self:
        unread = self.unread(self.model_dump())
        if given := sorted(self.model_fields_set & unread.keys()):
            raise ValueError("; ".join(f"{name!r} has no effect: {unread[name]}" for name in given))
        return self


class AverageParameters(Parameters):
    """A running mean has nothing to set."""


def _as_patterns(value: Any) -> Any:
    """A list as YAML gives it, or one pattern alone."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


Patterns = Annotated[tuple[str, ...], BeforeValidator(_as_patterns)]


def _share_or_by_count(value: Any) -> Any:
    if value == "by-count":
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"alpha: {value!r} is neither a number from 0 to 1 nor 'by-count'")
    if not 0 <= value <= 1:
        raise ValueError(f"alpha: {value} is not between 0 and 1")
    return float(value)


class DopParameters(Parameters):
    """The published method's parameters under their published names, and which solver minimises its objective."""

    per_model: ClassVar[frozenset[str]] = frozenset({"alpha"})
    only_adam: ClassVar[tuple[str, ...]] = ("lr", "num_steps", "mgda", "ema", "ema_beta")

    solver: Literal["exact", "adam"] = Field(
        "exact", description="exact: closed-form minimum for a fixed alpha; adam: the published procedure"
    )
    alpha: Annotated[float | Literal["by-count"], BeforeValidator(_share_or_by_count)] = Field(
        0.8,
        description="weight of stability (what is merged so far) against plasticity (the incoming model); "
        "by-count: (t-1)/t at the t-th model. With mgda it is where the weight starts",
    )
    svd_epsilon: float = Field(
        0.99999, gt=0, le=1, description="share of the sum of singular values that the projections keep"
    )
    svd_proj_space: Literal["uv", "u", "v"] = Field(
        "uv", description="project on the output side (u), the input side (v) or both"
    )
    rank_rule: Literal["at-least", "below"] = Field(
        "at-least",
        description="at-least: the fewest triplets that hold svd_epsilon; below: one fewer, as the reference code "
        "counts",
    )
    other: Literal["mean", "half"] = Field(
        "mean",
        description="what is done with tensors that are no matrices: running mean over the models so far, or the "
        "reference's half and half at every step",
    )
    exclude: Patterns = Field((), description="name patterns of matrices to treat as 'other' says")
    lr: float = Field(1e-4, gt=0, description="learning rate (adam only)")
    num_steps: int = Field(200, ge=0, description="steps per matrix and model (adam only)")
    mgda: bool = Field(True, description="multi-gradient descent chooses the weight at every step (adam only)")
    ema: bool = Field(True, description="smooth the chosen weight by a moving average (adam with mgda only)")
    ema_beta: float = Field(0.999, ge=0, le=1, description="decay of that moving average (adam with mgda only)")

    @classmethod
    def unread(cls, given: Mapping[str, Any]) -> dict[str, str]:
        if given.get("solver", "exact") == "exact":
            names, why = cls.only_adam, "solver: exact solves in closed form for a fixed alpha"
        elif given.get("mgda", True) is False:
            names, why = ("ema", "ema_beta"), "with mgda: false the weight stays at alpha"
        elif given.get("ema", True) is False:
            names, why = ("ema_beta",), "with ema: false there is no moving average"
        else:
            return {}
        return dict.fromkeys(names, why)

    def alpha_at(self, step: int) -> float:
        """The weight of stability when the ``step``-th model comes in (``step`` >= 2)."""
        return (step - 1) / step if isinstance(self.alpha, str) else self.alpha
