"""Which layers a recipe takes from which models: slices of layers, and parts of a model merged each for itself.

mergekit's words. What the layers of a real model are is the plan's business.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from dopkit.refs import ModelRef


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, defer_build=True)


class LayerSource(_Frozen):
    """Layers ``[start, stop)`` of one model; all of them without ``layers``."""

    model: ModelRef
    layers: tuple[int, int] | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)

    def to_data(self, folder: Path) -> dict[str, Any]:
        """The source as YAML data for a file that lies in ``folder``."""
        model, adapter = self.model.written_in_parts(folder)
        data: dict[str, Any] = {"model": model}
        if adapter is not None:
            data["adapter"] = adapter
        if self.layers is not None:
            data["layer_range"] = list(self.layers)
        return {**data, "parameters": self.parameters} if self.parameters else data


class Slice(_Frozen):
    """A run of layers of the result, each merged from one layer of every source."""

    sources: tuple[LayerSource, ...]
    parameters: dict[str, Any] = Field(default_factory=dict)

    def to_data(self, folder: Path) -> dict[str, Any]:
        data: dict[str, Any] = {"sources": [source.to_data(folder) for source in self.sources]}
        return {**data, "parameters": self.parameters} if self.parameters else data


class Part(_Frozen):
    """A part of the model (``language_model``; None for the whole), from one slice of layers after another."""

    module: str | None
    slices: tuple[Slice, ...]
    parameters: dict[str, Any] = Field(default_factory=dict)

    def sources(self) -> Iterator[LayerSource]:
        """Every source, in the order in which they are written."""
        for piece in self.slices:
            yield from piece.sources

    def with_refs(self, by_key: Mapping[tuple[str, ...], ModelRef]) -> Part:
        """The same with each reference that ``by_key`` has the key of replaced."""
        slices = tuple(
            piece.model_copy(
                update={
                    "sources": tuple(
                        source.model_copy(update={"model": by_key.get(source.model.key, source.model)})
                        for source in piece.sources
                    )
                }
            )
            for piece in self.slices
        )
        return self.model_copy(update={"slices": slices})


def parts_to_data(parts: tuple[Part, ...], folder: Path) -> dict[str, Any]:
    """The recipe keys that say the same, for a file that lies in ``folder``."""
    if len(parts) == 1 and parts[0].module is None:
        return {"slices": [piece.to_data(folder) for piece in parts[0].slices]}
    return {"modules": {str(part.module): _module(part, folder) for part in parts}}


def _module(part: Part, folder: Path) -> dict[str, Any]:
    first = part.slices[0]
    if len(part.slices) == 1 and not first.parameters and all(source.layers is None for source in first.sources):
        data: dict[str, Any] = {"models": [source.to_data(folder) for source in first.sources]}
    else:
        data = {"slices": [piece.to_data(folder) for piece in part.slices]}
    return {**data, "parameters": part.parameters} if part.parameters else data
