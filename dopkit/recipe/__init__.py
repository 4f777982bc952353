"""The recipe: which models, in which order, by which method. Frozen, complete, and free of torch and network.

mergekit's words where the meaning is equal. What a recipe means for real checkpoints is the plan's business.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SerializeAsAny

from dopkit import methods
from dopkit.methods.parameters import Parameters
from dopkit.recipe.document import write_all
from dopkit.recipe.entries import Frozen, ModelEntry, Override, validated, written
from dopkit.recipe.layers import Part, parts_to_data
from dopkit.recipe.settings import Place, filters, matches, resolve, varies
from dopkit.recipe.tokenizer import TokenizerSettings
from dopkit.refs import ModelRef

_SETTINGS: Any = {"parameters": True, "sources": {"__all__": {"parameters"}}}

__all__ = ["Dtype", "ModelEntry", "Override", "Recipe", "Stage"]

Dtype = Literal["float32", "float16", "bfloat16", "float64"]


class Stage(Frozen):
    """A model that is merged by a recipe of its own, for others to refer to."""

    name: str
    recipe: Recipe


class Recipe(Frozen):
    """A checked recipe. Make one with ``load_recipe`` or ``parse_recipe``; fields are as in the YAML file."""

    name: str  # of the recipe file without its suffix: what the output folder is called
    base_model: ModelRef | None = None
    merge_method: str
    models: tuple[ModelEntry, ...]  # with ``parts`` those that they name, each once
    parameters: SerializeAsAny[Parameters]  # where one varies, with the first of its values
    varying: dict[str, Any] = Field(default_factory=dict)  # those that are not the same for every tensor, as written
    overrides: tuple[Override, ...] = ()  # the YAML key is `methods`
    parts: tuple[Part, ...] = ()  # from `slices` or `modules`
    dtype: Dtype | None = None
    out_dtype: Dtype | None = None
    order: Literal["given", "shuffle"] = "given"
    seed: int | None = None
    heads: Literal["base", "drop", "per-task"] | None = None
    # Name patterns of tensors that are taken from the base; what the models hold there is left unread.
    # The YAML key is `copy`; pydantic models have a method of that name.
    copied: tuple[str, ...] = ()
    tokenizer: TokenizerSettings | None = None
    chat_template: str | None = None  # auto, the name of one that is known, or a Jinja text
    output: Literal["model", "adapter"] = "model"
    rank: int | None = None  # the most that an adapter gets for each module
    stages: tuple[Stage, ...] = ()  # that this one needs, each behind those that it needs itself
    notes: tuple[str, ...] = ()  # what of the file was left out, and why; no part of the recipe
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

    @property
    def tokenizer_ref(self) -> ModelRef | None:
        """The model that only the tokenizer is of: none of those that are merged."""
        named = self.tokenizer.model if self.tokenizer is not None else None
        return named if named is not None and named.key not in {ref.key for ref in self.refs} else None

    @property
    def all_refs(self) -> tuple[ModelRef, ...]:
        """The same, the model that only the tokenizer is of, and what is read beside the models."""
        return (*self.refs, *((self.tokenizer_ref,) if self.tokenizer_ref is not None else ()), *self.companions)

    @property
    def companions(self) -> tuple[ModelRef, ...]:
        """What is read beside the models, each once."""
        return tuple({ref.key: ref for entry in self.models for ref in entry.companions.values()}.values())

    @property
    def documents(self) -> tuple[Recipe, ...]:
        """The recipes of its stages, and this one."""
        return (*(stage.recipe for stage in self.stages), self)

    @property
    def real_refs(self) -> tuple[ModelRef, ...]:
        """Every model that exists before: those of its stages as well, but no stage, each once."""
        refs = (ref for document in self.documents for ref in document.all_refs)
        parts = (ref.adapter if ref.stage is not None else ref for ref in refs)
        return tuple({ref.key: ref for ref in parts if ref is not None}.values())

    def needed(self, stages: Sequence[Stage]) -> tuple[Stage, ...]:
        """Those of ``stages`` that this recipe refers to, and those that they need themselves; in the same order."""
        names = {ref.stage for ref in self.refs}
        for stage in reversed(stages):
            if stage.name in names:
                names |= {ref.stage for ref in stage.recipe.refs}
        return tuple(stage for stage in stages if stage.name in names)

    @property
    def settled(self) -> bool:
        """Whether every tensor is merged by one method with the same parameters."""
        own = (value for entry in self.models for value in entry.parameters.values())
        return not (self.varying or self.overrides or self.parts or any(varies(value) for value in own))

    def settings_data(self) -> dict[str, Any]:
        """What makes tensors differ from one another, as data; nothing where all are merged alike."""
        parts = [part.model_dump(include={"module": True, "parameters": True, "slices": {"__all__": _SETTINGS}})
                 for part in self.parts]  # fmt: skip
        overrides = [override.to_data() for override in self.overrides]
        return {key: value for key, value in (("varying", self.varying), ("parts", parts), ("overrides", overrides))
                if value}  # fmt: skip

    def patterns(self) -> Iterator[tuple[str, str]]:
        """Every name pattern and the key that it stands under."""
        yield from (("copy", pattern) for pattern in self.copied)
        yield from (("exclude", pattern) for pattern in getattr(self.parameters, "exclude", ()))
        yield from (("methods", override.filter) for override in self.overrides)
        slices = [piece for part in self.parts for piece in part.slices]
        levels = [self.varying, *(one.varying for one in self.overrides), *(one.parameters for one in self.models)]
        levels += [part.parameters for part in self.parts] + [piece.parameters for piece in slices]
        levels += [source.parameters for piece in slices for source in piece.sources]
        for level in levels:
            for name, setting in level.items():
                yield from ((name, pattern) for pattern in filters(setting))

    def override_at(self, place: Place) -> Override | None:
        """The first of ``overrides`` that a tensor falls under."""
        return next((one for one in self.overrides if matches(one.filter, place.names)), None)

    def parameters_for(self, index: int) -> Parameters:
        """The parameters at the step that folds in ``models[index]``, the same for every tensor (see ``settled``)."""
        return self.parameters_at(Place((), 0), self.models[index].parameters)

    def parameters_at(self, place: Place, *levels: Mapping[str, Any]) -> Parameters:
        """What is in force for one tensor: the recipe's parameters, then those of every level, the narrowest last.

        Where another method is set for the tensor, of the levels only those count that it knows for single models.
        Raises ValidationError for what only shows when all of them are seen together.
        """
        override = self.override_at(place)
        wide = self if override is None else override
        kind = type(wide.parameters)
        found = {**wide.parameters.given(), **resolve(wide.varying, place)}
        for missing in wide.varying.keys() - resolve(wide.varying, place).keys():
            del found[missing]  # it stood there with the first of its values
        for level in levels:
            own = resolve(level, place)
            known = kind.per_model if override is not None else own.keys()
            found |= {name: value for name, value in own.items() if name in known}
        if found == wide.parameters.given():
            return wide.parameters
        return validated(kind, tuple(sorted(found.items())))

    def drawn(self) -> Recipe:
        """The recipe with its models in the order they are merged in: the shuffle is drawn and written down.

        The order depends on the seed and the number of models alone; without a seed it is that of seed 0.
        """
        stages = tuple(stage.model_copy(update={"recipe": stage.recipe.drawn()}) for stage in self.stages)
        if self.order == "given":
            return self if stages == self.stages else self.model_copy(update={"stages": stages})
        entries = list(self.models)
        random.Random(self.seed or 0).shuffle(entries)
        seed = (self.seed or 0) if self.method.random else None
        changed = {"models": tuple(entries), "order": "given", "seed": seed, "stages": stages}
        return self.model_copy(update=changed)

    def with_refs(self, pins: dict[ModelRef, ModelRef]) -> Recipe:
        """The same recipe with each reference that ``pins`` has, in whatever spelling, replaced by its pinned one."""
        by_key = {ref.key: pin for ref, pin in pins.items()}
        tokenizer = self.tokenizer and self.tokenizer.with_refs(lambda ref: by_key.get(ref.key, ref))
        entries = tuple(entry.with_refs(by_key) for entry in self.models)
        base = by_key.get(self.base_model.key, self.base_model) if self.base_model else None
        parts = tuple(part.with_refs(by_key) for part in self.parts)
        stages = tuple(stage.model_copy(update={"recipe": stage.recipe.with_refs(pins)}) for stage in self.stages)
        changed = {"base_model": base, "models": entries, "parts": parts, "stages": stages, "tokenizer": tokenizer}
        return self.model_copy(update=changed)

    def to_data(self, folder: Path) -> dict[str, Any]:
        """The recipe as YAML data for a file that lies in ``folder``, with every parameter that is in force.

        Its stages are documents of their own: see ``to_documents``.
        """
        data: dict[str, Any] = {"merge_method": self.merge_method}
        if self.base_model is not None:
            data["base_model"] = self.base_model.written_from(folder)
        if self.parts:
            data |= parts_to_data(self.parts, folder)
        else:
            data["models"] = [entry.to_data(folder) for entry in self.models]
        if parameters := written(self.parameters, self.varying):
            data["parameters"] = parameters
        if self.overrides:
            data["methods"] = [override.to_data() for override in self.overrides]
        if self.output != "model":
            data["output"] = self.output
        for key in ("rank", "dtype", "out_dtype", "heads", "seed"):
            if getattr(self, key) is not None:
                data[key] = getattr(self, key)
        if self.order != "given":
            data["order"] = self.order
        if self.tokenizer is not None:
            data["tokenizer"] = self.tokenizer.to_data(folder)
        if self.chat_template is not None:
            data["chat_template"] = self.chat_template
        if self.copied:
            data["copy"] = list(self.copied)
        return data

    def to_documents(self, folder: Path) -> list[dict[str, Any]]:
        """The data of every document of such a file: the stages by their names, and this recipe last."""
        stages = ({"name": stage.name, **stage.recipe.to_data(folder)} for stage in self.stages)
        return [*stages, self.to_data(folder)]

    def to_yaml(self, folder: Path) -> str:
        """The recipe with its stages as a YAML text for a file that lies in ``folder``."""
        return write_all(self.to_documents(folder))


Stage.model_rebuild()
