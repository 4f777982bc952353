"""The parameters of Fisher merging."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from dopkit.methods.parameters import Parameters


class FisherParameters(Parameters):
    """The reference implementation (github.com/mmatena/model_merging) normalises, and has a floor of 1e-6.

    Its floor is one of the Fisher as it was computed, and for the first model alone.
    """

    per_model: ClassVar[frozenset[str]] = frozenset({"fisher", "weight"})
    required: ClassVar[frozenset[str]] = frozenset({"fisher"})
    companions: ClassVar[frozenset[str]] = frozenset({"fisher"})
    whole_model: ClassVar[frozenset[str]] = frozenset({"fisher", "normalize"})

    fisher: str | None = Field(
        None,
        description="of a model: a safetensors file with an entry for each of its weights, none negative; a folder or "
        "repository with fisher.safetensors; or the optimizer.pt that transformers' Trainer keeps (AdamW)",
    )
    weight: float = Field(1.0, gt=0, description="what a model's Fisher is multiplied by")
    normalize: bool = Field(
        True, description="divide each model's Fisher by its root mean square over all that is merged by it"
    )
    epsilon: float = Field(
        1e-6,
        gt=0,
        description="smaller entries (of the divided Fisher) count as this: where no model has more, the result is "
        "their weighted mean",
    )
