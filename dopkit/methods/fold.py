"""The shape of a merge method: what the engine hands over and what it gets back.

A method sees tensors and parameters. It does not know files, models, devices or progress bars.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from dopkit.roles import Role

if TYPE_CHECKING:
    import torch

    from dopkit.methods.parameters import Parameters


def _nothing(record: dict[str, Any]) -> None:
    """Where records go when nobody asked for them."""


@dataclass(frozen=True)
class Context:
    """What a fold may know beside the tensors."""

    parameters: Parameters  # of the method, with what the recipe says for the model being folded in
    role: Role
    step: int  # which model this is: 1 for the first (``start``), t for the t-th
    record: Callable[[dict[str, Any]], None] = _nothing  # measured numbers for the receipt


class Fold(Protocol):
    """An ordered merge of one tensor, in memory that does not grow with the number of models.

    All tensors are float32 on one device. ``base`` must be left as it is (and is None for a rule that does not
    need it); ``first`` and ``incoming`` belong to the fold, which may keep or overwrite them.
    """

    def start(self, base: torch.Tensor | None, first: torch.Tensor, ctx: Context) -> Any: ...

    def step(self, state: Any, incoming: torch.Tensor, ctx: Context) -> Any: ...

    def finish(self, state: Any, ctx: Context) -> torch.Tensor:
        """The merged tensor after the models so far. Leaves the state good for another step.

        What is returned may be a part of the state, which the next step overwrites.
        """

    def pack(self, state: Any) -> dict[str, torch.Tensor]:
        """All that the state holds beside the base, under the names of ``Rule.state``."""

    def unpack(self, base: torch.Tensor | None, packed: Mapping[str, torch.Tensor], ctx: Context) -> Any:
        """The state again, bit for bit. The tensors belong to the fold; ``ctx.step`` is the number of models so far."""


class RunningFold:
    """What the folds share whose state is the merged tensor."""

    def start(self, base: torch.Tensor | None, first: torch.Tensor, ctx: Context) -> torch.Tensor:
        return first

    def finish(self, state: torch.Tensor, ctx: Context) -> torch.Tensor:
        return state

    def pack(self, state: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"merged": state}

    def unpack(self, base: torch.Tensor | None, packed: Mapping[str, torch.Tensor], ctx: Context) -> torch.Tensor:
        return packed["merged"]


@dataclass
class BaseAndMerged:
    """The state of a fold that works on task vectors and carries nothing but the merged weights."""

    base: torch.Tensor  # never written to
    merged: torch.Tensor  # of the base's shape


class TaskVectorFold:
    """What the folds share whose state is ``BaseAndMerged``; the first model is taken as it is."""

    def start(self, base: torch.Tensor | None, first: torch.Tensor, ctx: Context) -> BaseAndMerged:
        """Raises ValueError without a base."""
        if base is None:
            raise ValueError("a fold of task vectors needs the base model's tensor")
        return BaseAndMerged(base, first)

    def finish(self, state: BaseAndMerged, ctx: Context) -> torch.Tensor:
        return state.merged

    def pack(self, state: BaseAndMerged) -> dict[str, torch.Tensor]:
        return {"merged": state.merged}

    def unpack(self, base: torch.Tensor | None, packed: Mapping[str, torch.Tensor], ctx: Context) -> BaseAndMerged:
        if base is None:
            raise ValueError("a fold of task vectors needs the base model's tensor")
        return BaseAndMerged(base, packed["merged"])
