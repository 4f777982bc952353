"""The earlier merge that this one goes on from. Data; ``dopkit.state`` reads it, the engine acts on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dopkit.planning import Source
    from dopkit.recipe import Recipe


@dataclass(frozen=True)
class Continuation:
    """What is known of the models that were merged before. They are not opened again."""

    recipe: Recipe  # of what was merged before, every model pinned
    earlier: tuple[Source, ...]  # its models, in merge order; at least one
    scale: float  # what their merged task vector was multiplied by
    norms: tuple[float, ...]  # of each one's task vector over the whole model; () where the method needs none
    kept: bool  # the state of the folds is read, instead of the merged weights
    inexact: str | None = None  # why merging all models at once would give something else
    download_bytes: int = 0  # of the kept state that is not here
    heads: tuple[str, ...] = ()  # the names of those that lie beside what was merged

    @property
    def step(self) -> int:
        """How many models were merged before."""
        return len(self.earlier)
