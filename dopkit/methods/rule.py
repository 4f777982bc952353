"""What a method is to everyone else: its name, its parameters, and the rule it gives each tensor.

Loads neither torch nor any method's code: a rule names the code, which is imported when a merge runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from importlib import import_module
from typing import Any, Literal

from dopkit.methods.fold import Fold, Joint
from dopkit.methods.parameters import Parameters
from dopkit.roles import Role

Shape = tuple[int, ...]
Scale = float | Literal["norm"]


class Cut(Enum):
    """How a tensor may be cut into parts that are merged one after another."""

    BLOCKS = "rows"  # element by element: any run of rows
    MATRICES = "matrices"  # two axes belong together; of more than two, each slice along the first is its own matrix
    WHOLE = "whole"  # every element counts for every other


def merged_alone(shape: Shape) -> dict[str, tuple[str, Shape]]:
    """The state of a fold that carries nothing but the merged weights."""
    return {"merged": ("F32", shape)}


@dataclass(frozen=True)
class Rule:
    """What is done with one tensor."""

    name: str  # as the plan and the receipt print it
    # "package.module:Class" of a Fold, or of a Joint, without arguments; None copies the base's tensor.
    fold: str | None
    cut: Cut
    needs_base: bool
    # Bytes at work for one part of this shape beyond the part being read: an upper estimate.
    working_bytes: Callable[[Shape], int]
    # Rough seconds of one core to fold one model into a part of this shape: for the time left, and to share out work.
    effort: Callable[[Shape], float]
    float64: bool = False  # whether it factorises in float64, which not every device has
    # What `Fold.pack` gives for one part of this shape: name to safetensors dtype and shape.
    state: Callable[[Shape], Mapping[str, tuple[str, Shape]]] = merged_alone
    # Whether `Fold.unpack` can make its state from the merged tensor too, given as "merged", but for rounding.
    resumes: bool = False
    # Whether the code is a Joint: then each model is one more copy of the part, beside the working bytes.
    joint: bool = False
    # The parameters whose tensors a fold reads beside each model's own, in ``Context.companions``.
    companions: tuple[str, ...] = ()
    # As ``working_bytes``, when what the code has no use for at the moment lies on the disk (``Context.park``); None
    # where it says nothing of that.
    least_bytes: Callable[[Shape], int] | None = None

    def load(self) -> Fold:
        """Import the code and make the fold."""
        assert not self.joint, f"{self.name} merges all models at once"
        fold: Fold = self._made()
        return fold

    def load_joint(self) -> Joint:
        """Import the code of a joint rule and make the merge."""
        assert self.joint, f"{self.name} folds"
        joint: Joint = self._made()
        return joint

    def from_merged(self, shape: Shape) -> bool:
        """Whether the fold can go on from the merged tensor, a part of it having this shape."""
        return self.resumes or list(self.state(shape)) == ["merged"]

    def _made(self) -> Any:
        assert self.fold is not None, f"{self.name} copies"
        module, _, attribute = self.fold.partition(":")
        return getattr(import_module(module), attribute)()


@dataclass(frozen=True)
class Method:
    """A merge method as recipes name it."""

    name: str
    summary: str
    parameters: type[Parameters]
    # (parameters, canonical name, role, shape) -> what is done with that floating-point tensor
    rule_for: Callable[[Parameters, str, Role, Shape], Rule]
    paper: str
    needs_base: bool  # else it is used by those rules that have a use for it, where there is one
    # Whether the order of the models changes the result.
    ordered: bool
    least_models: int = 1  # beside the base
    most_models: int | None = None
    family: str = "others"  # under which `dopkit methods` lists it
    # Whether a base that stands among the models as well, as mergekit's recipes have it, is no model to merge.
    skips_base: bool = False
    random: bool = False  # draws from the recipe's seed
    # Whether models can be added to what was merged without those that are in it: every rule is a fold's.
    grows: bool = True
    # Whether they can be added only to a merge whose state was kept: what was merged tells too little of it.
    needs_state: bool = False
    # Whether the folds want to know of how large a model's companions are as a whole, in ``Context.sizes``.
    measures: Callable[[Parameters], bool] = lambda parameters: False
    # What the merged task vector is multiplied by at the end: a number, `norm` (so that its norm over the whole model
    # is the mean norm of the models' task vectors), or nothing.
    scale_of: Callable[[Parameters], Scale | None] = lambda parameters: None
