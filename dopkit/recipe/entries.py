"""What a recipe lists: its models, and the other methods that some tensors get, with their parameters."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny

from dopkit import methods
from dopkit.methods.parameters import Parameters
from dopkit.recipe.settings import possible
from dopkit.refs import ModelRef


class Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class ModelEntry(Frozen):
    """One model of the list, with what the recipe sets for the step that folds it in."""

    model: ModelRef
    parameters: dict[str, Any] = Field(default_factory=dict)
    companions: dict[str, ModelRef] = Field(default_factory=dict)  # what of the parameters names tensors beside it

    def to_data(self, folder: Path) -> str | dict[str, Any]:
        """The entry as YAML data for a file that lies in ``folder``."""
        model, adapter = self.model.written_in_parts(folder)
        parameters = {name: ref.written_from(folder) for name, ref in self.companions.items()} | self.parameters
        if adapter is None and not parameters:
            return model
        parts = {"model": model} if adapter is None else {"model": model, "adapter": adapter}
        return {**parts, "parameters": parameters} if parameters else parts

    def with_refs(self, by_key: Mapping[tuple[str, ...], ModelRef]) -> ModelEntry:
        """The same with each reference that ``by_key`` has the key of replaced."""
        companions = {name: by_key.get(ref.key, ref) for name, ref in self.companions.items()}
        changed = {"model": by_key.get(self.model.key, self.model), "companions": companions}
        return self.model_copy(update=changed)


class Override(Frozen):
    """Another method for the tensors that fall under a filter."""

    filter: str
    merge_method: str
    parameters: SerializeAsAny[Parameters]
    varying: dict[str, Any] = Field(default_factory=dict)  # as in Recipe

    @property
    def method(self) -> methods.Method:
        return methods.find(self.merge_method)

    def to_data(self) -> dict[str, Any]:
        """The override as YAML data."""
        data = {"filter": self.filter, "merge_method": self.merge_method}
        whole = self.parameters.whole_model  # the recipe's own count
        parameters = {
            name: value for name, value in written(self.parameters, self.varying).items() if name not in whole
        }
        return {**data, "parameters": parameters} if parameters else data


def written(parameters: Parameters, varying: Mapping[str, Any]) -> dict[str, Any]:
    """Every parameter in force, as YAML data; without those that no value of a ``varying`` one leaves an effect."""
    kind, given, data = type(parameters), parameters.given(), parameters.in_force()
    for name, setting in varying.items():
        for value in possible(setting):
            unread = kind.unread({**data, name: value}).keys() - given.keys()
            data = {key: kept for key, kept in data.items() if key not in unread}
    return {**data, **varying}


@lru_cache(maxsize=4096)
def validated(kind: type[Parameters], found: tuple[tuple[str, Any], ...]) -> Parameters:
    """One object for all tensors with the same parameters: a large model has tens of thousands."""
    return kind.model_validate(dict(found))
