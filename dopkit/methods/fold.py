"""The shape of a merge method: what the engine hands over and what it gets back.

A method sees tensors and parameters. It does not know files, models, devices or progress bars.
"""

from __future__ import annotations

from collections.abc import Callable
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

    def finish(self, state: Any, ctx: Context) -> torch.Tensor: ...
