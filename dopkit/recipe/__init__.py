"""The recipe: which models, in which order, by which method. Frozen, complete, and free of torch and network.

mergekit's words where the meaning is equal. What a recipe means for real checkpoints is the plan's business.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny

from dopkit import methods
from dopkit.methods.parameters import Parameters
from dopkit.recipe.document import write
from dopkit.refs import ModelRef

Dtype = Literal["float32", "float16", "bfloat16", "float64"]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class ModelEntry(_Frozen):
    """One model of the list, with what the recipe sets for the step that folds it in."""

    model: ModelRef
    parameters: dict[str, Any] = Field(default_factory=dict)

    def to_data(self, folder: Path) -> str | dict[str, Any]:
        """The entry as YAML data for a file that lies in ``folder``."""
        model, adapter = self.model.written_in_parts(folder)
        if adapter is None and not self.parameters:
            return model
        parts = {"model": model} if adapter is None else {"model": model, "adapter": adapter}
        return {**parts, "parameters": self.parameters} if self.parameters else parts


class Recipe(_Frozen):
    """A checked recipe. Make one with ``load_recipe`` or ``parse_recipe``; fields are as in the YAML file."""

    name: str  # of the recipe file without its suffix: what the output folder is called
    base_model: ModelRef | None = None
    merge_method: str
    models: tuple[ModelEntry, ...]
    parameters: SerializeAsAny[Parameters]
    dtype: Dtype | None = None
    out_dtype: Dtype | None = None
    order: Literal["given", "shuffle"] = "given"
    seed: int | None = None
    heads: Literal["base", "drop", "per-task"] | None = None
    # Name patterns of tensors that are taken from the base; what the models hold there is left unread.
    # The YAML key is `copy`; pydantic models have a method of that name.
    copied: tuple[str, ...] = ()
    output: Literal["model", "adapter"] = "model"
    rank: int | None = None  # the most that an adapter gets for each module
    # Where the result is published when asked to. No part of what is merged, so it is not written with it.
    repo_id: str | None = None

    @property
    def method(self) -> methods.Method:
        return methods.find(self.merge_method)

    @property
    def donor(self) -> ModelRef:
        """The model whose config, tokenizer, spelling and dtype the result takes: the base, else the first."""
        return self.base_model or self.models[0].model

    @property
    def headless(self) -> bool:
        """Whether the result is the backbone alone."""
        return self.heads in ("drop", "per-task")

    @property
    def refs(self) -> tuple[ModelRef, ...]:
        """Every model the recipe names, base first, each once and in its first spelling."""
        first: dict[tuple[str, ...], ModelRef] = {}
        for ref in (self.donor, *(entry.model for entry in self.models)):
            first.setdefault(ref.key, ref)
        return tuple(first.values())

    def parameters_for(self, index: int) -> Parameters:
        """The method's parameters at the step that folds in ``models[index]``."""
        own = self.models[index].parameters
        if not own:
            return self.parameters
        return type(self.parameters).model_validate({**self.parameters.given(), **own})

    def drawn(self) -> Recipe:
        """The recipe with its models in the order they are merged in: the shuffle is drawn and written down.

        The order depends on the seed and the number of models alone; without a seed it is that of seed 0.
        """
        if self.order == "given":
            return self
        entries = list(self.models)
        random.Random(self.seed or 0).shuffle(entries)
        seed = (self.seed or 0) if self.method.random else None
        return self.model_copy(update={"models": tuple(entries), "order": "given", "seed": seed})

    def with_refs(self, pins: dict[ModelRef, ModelRef]) -> Recipe:
        """The same recipe with each reference that ``pins`` has, in whatever spelling, replaced by its pinned one."""
        by_key = {ref.key: pin for ref, pin in pins.items()}
        entries = tuple(
            entry.model_copy(update={"model": by_key.get(entry.model.key, entry.model)}) for entry in self.models
        )
        base = by_key.get(self.base_model.key, self.base_model) if self.base_model else None
        return self.model_copy(update={"base_model": base, "models": entries})

    def to_data(self, folder: Path) -> dict[str, Any]:
        """The recipe as YAML data for a file that lies in ``folder``, with every parameter that is in force."""
        data: dict[str, Any] = {"merge_method": self.merge_method}
        if self.base_model is not None:
            data["base_model"] = self.base_model.written_from(folder)
        data["models"] = [entry.to_data(folder) for entry in self.models]
        if parameters := self.parameters.in_force():
            data["parameters"] = parameters
        if self.output != "model":
            data["output"] = self.output
        for key in ("rank", "dtype", "out_dtype", "heads", "seed"):
            if getattr(self, key) is not None:
                data[key] = getattr(self, key)
        if self.order != "given":
            data["order"] = self.order
        if self.copied:
            data["copy"] = list(self.copied)
        return data

    def to_yaml(self, folder: Path) -> str:
        """The recipe as a YAML text for a file that lies in ``folder``."""
        return write(self.to_data(folder))
