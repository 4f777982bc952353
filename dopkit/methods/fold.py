"""The shape of a merge method: what the engine hands over and what it gets back.

A method sees tensors and parameters. It does not know files, models, devices or progress bars.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from dopkit.linalg.parking import KEPT, Park
from dopkit.roles import Role

if TYPE_CHECKING:
    import torch

    from dopkit.methods.parameters import Parameters


def _nothing(record: dict[str, Any]) -> None:
    """Where records go when nobody asked for them."""


@dataclass(frozen=True)
class Context:
    """What a method may know beside the tensors."""

    parameters: Parameters  # of the method, with what the recipe says for the model being folded in
    role: Role
    step: int  # which model this is: 1 for the first (``start``), t for the t-th
    record: Callable[[dict[str, Any]], None] = _nothing  # measured numbers for the receipt
    models: tuple[Parameters, ...] = ()  # of every model up to this one; () where all have the same
    # For methods that draw: see ``draws``.
    seed: int = 0
    tensor: str = ""  # the canonical name
    model: str = ""
    offset: int = 0  # of the part's first element in the flattened tensor
    # Beside the model being folded in, by parameter (``Rule.companions``): the same part of each companion, which
    # belongs to the fold and is nowhere negative; and its root mean square over the whole model (``Method.measures``).
    companions: Mapping[str, torch.Tensor] = field(default_factory=dict)
    sizes: Mapping[str, float] = field(default_factory=dict)
    # What the fold has found in the whole of the model being folded in, when only a part of it is at hand (Surveying).
    survey: Any = None
    # What is told which matrices are not needed at the moment, by a fold of whose rule the plan knows the least memory.
    park: Park = KEPT

    @property
    def so_far(self) -> tuple[Parameters, ...]:
        """The parameters of every model up to this one, in merge order."""
        return self.models or (self.parameters,) * self.step


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


class Whole(Protocol):
    """A model's whole tensor beside the base's, of which the fold sees some at a time, as float32."""

    numel: int

    def sample(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Every so manieth element of base and model."""

    def blocks(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """All elements of both, in flat blocks. What is handed over of the model belongs to the fold."""


@runtime_checkable
class Surveying(Protocol):
    """A fold of whole tensors that goes element by element once it has looked at every model as a whole."""

    def survey(self, whole: Whole, ctx: Context) -> Any:
        """What the fold must know of a model to merge any part of it: ``Context.survey`` then.

        None where it must have the whole after all: of this tensor, no model is then handed over in parts.
        """


class Joint(Protocol):
    """A merge of one tensor that must see all models at once, in memory that grows with their number.

    All tensors are float32 on one device, ``base`` is None for a rule that does not need it. All are left as they are:
    with the models of earlier steps wanted, the first t of them are merged for every t.
    """

    def merge(
        self, base: torch.Tensor | None, tensors: Sequence[torch.Tensor], contexts: Sequence[Context]
    ) -> torch.Tensor:
        """The merged tensor, a new one. ``contexts`` holds a context for each of ``tensors``: at least one."""


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


@dataclass
class BaseAndTotal:
    """The state of a fold that divides at the end."""

    base: torch.Tensor  # never written to
    total: torch.Tensor  # of the weighted task vectors, of the base's shape
