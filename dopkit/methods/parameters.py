"""The parameters of every built-in method: defaults, bounds, and what each one means.

One declaration serves the recipe, ``dopkit methods`` and the method's own code. Loads no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


class Parameters(BaseModel):
    """Parameters of a method: frozen, and no key that the method does not read.

    Values are taken as they are: ``true`` is no number, ``"0.5"`` is no number either. A list needs ``Patterns``.
    A parameter whose name Python keeps for itself has that name as an alias (``lambda_`` is ``lambda``); everything
    outside the method's code knows the alias alone.
    """

    # Built at the first use: a command that only names the methods does not wait for every validator.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True, defer_build=True)

    # The ones that an entry of ``models`` may set for the step that folds this model in.
    per_model: ClassVar[frozenset[str]] = frozenset()
    # Those of them that have no default: each model needs one, its own or the recipe's. None until then.
    required: ClassVar[frozenset[str]] = frozenset()
    # Those of them that name a file or repository with a tensor for each of the model's: see ``Rule.companions``.
    companions: ClassVar[frozenset[str]] = frozenset()
    # Those that are one for the whole model: no filter, slice or layer has its own.
    whole_model: ClassVar[frozenset[str]] = frozenset({"scale", "exclude"})

    def without_state(self) -> tuple[Self, str] | None:
        """What to go on with from merged weights alone, and what that loses; None where they are the whole state."""
        return None

    @classmethod
    def names(cls) -> list[str]:
        """The parameters as recipes name them, in the order of their declaration."""
        return [field.alias or name for name, field in cls.model_fields.items()]

    def given(self) -> dict[str, Any]:
        """The parameters that were set, not left at their defaults, under their names in recipes."""
        return self.model_dump(exclude_unset=True, by_alias=True)

    def in_force(self) -> dict[str, Any]:
        """Every parameter that has an effect, with its value, as YAML data: what a pinned recipe holds."""
        data = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        unread = self.unread(data)
        return {name: value for name, value in data.items() if name not in unread}

    @classmethod
    def unread(cls, given: Mapping[str, Any]) -> dict[str, str]:
        """The parameters that have no effect beside the other ones given, and why."""
        return {}

    @classmethod
    def together(cls, models: Sequence[Self]) -> str:
        """What is wrong with the parameters of all models, seen together; "" when nothing is."""
        return ""

    @model_validator(mode="after")
    def _every_given_parameter_is_read(self) -> Self:
        unread = self.unread(self.model_dump(by_alias=True))
        if given := sorted(self.given().keys() & unread.keys()):
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


def _scale_or_norm(value: Any) -> Any:
    if value == "norm":
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"scale: {value!r} is neither a number above 0 nor 'norm'")
    if not 0 < value < math.inf:
        raise ValueError(f"scale: {value} is not a number above 0")
    return float(value)


ScaleOrNorm = Annotated[float | Literal["norm"], BeforeValidator(_scale_or_norm)]


def scale_field() -> Any:
    """The default and the meaning of ``scale``, which several methods have."""
    return Field(
        1.0,
        description="what the merged task vector is multiplied by at the end; norm: so that its norm over the whole "
        "model is the mean norm of the models' task vectors",
    )


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
    history: Literal["last", "all"] = Field(
        "last",
        description="last: earlier models are remembered through what is merged so far, as published; all: the minimum "
        "over all models, each of weight 1, in any order (exact only)",
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
    scale: ScaleOrNorm = scale_field()
    other: Literal["mean", "half", "base"] = Field(
        "mean",
        description="what is done with tensors that are no matrices: running mean over the models so far, the "
        "reference's half and half at every step, or as the base has them",
    )
    exclude: Patterns = Field((), description="name patterns of matrices to treat as 'other' says")
    lr: float = Field(1e-4, gt=0, description="learning rate (adam only)")
    num_steps: int = Field(200, ge=0, description="steps per matrix and model (adam only)")
    mgda: bool = Field(True, description="multi-gradient descent chooses the weight at every step (adam only)")
    ema: bool = Field(True, description="smooth the chosen weight by a moving average (adam with mgda only)")
    ema_beta: float = Field(0.999, ge=0, le=1, description="decay of that moving average (adam with mgda only)")

    @classmethod
    def unread(cls, given: Mapping[str, Any]) -> dict[str, str]:
        if given.get("history", "last") == "all":
            why = "history: all weighs every model alike, and solves in closed form"
            names: tuple[str, ...] = ("alpha", *cls.only_adam)
        elif given.get("solver", "exact") == "exact":
            names, why = cls.only_adam, "solver: exact solves in closed form for a fixed alpha"
        elif given.get("mgda", True) is False:
            names, why = ("ema", "ema_beta"), "with mgda: false the weight stays at alpha"
        elif given.get("ema", True) is False:
            names, why = ("ema_beta",), "with ema: false there is no moving average"
        else:
            return {}
        return dict.fromkeys(names, why)

    @model_validator(mode="after")
    def _all_is_exact(self) -> Self:
        if self.history == "all" and self.solver != "exact":
            raise ValueError("history: all has no published procedure to reproduce: it needs solver: exact")
        return self

    def without_state(self) -> tuple[Self, str] | None:
        if self.history == "last":
            return None
        given = {key: value for key, value in self.given().items() if key != "history"}
        return type(self).model_validate(given), "the sums over the earlier models were not kept, so `history: last`"

    def alpha_at(self, step: int) -> float:
        """The weight of stability when the ``step``-th model comes in (``step`` >= 2)."""
        return (step - 1) / step if isinstance(self.alpha, str) else self.alpha
