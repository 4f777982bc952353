"""What the model classes answer, in plain data: it can be written down and read again without them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dopkit.errors import Problem
from dopkit.roles import TensorRole


@dataclass(frozen=True)
class Skeleton:
    """How the tensors of one checkpoint look to their model class.

    Without a class (``fallback`` is set) the roles are guesses from name and shape, the canonical names are
    the checkpoint's own, nothing is tied and nothing is unknown.
    """

    # Checkpoint name -> canonical name and role, for every tensor given. Canonical names are unique.
    roles: Mapping[str, TensorRole]
    # Canonical name of a twin -> canonical name of the parameter it shares storage with, as the class and the
    # configuration say. Most checkpoints leave the twin out. One that is there is best merged like any other
    # tensor: if its values are its own, which no header tells, transformers unties the two on loading.
    tied: Mapping[str, str]
    # Canonical names of all parameters and persistent buffers of the class, tied twins left out: what
    # ``save_pretrained`` writes, except that experts and other converted tensors stand here as converted.
    expected: frozenset[str] | None
    # Checkpoint names that the class silently ignores on loading (``rotary_emb.inv_freq`` of old models).
    ignored: frozenset[str]
    # Checkpoint names for which the class has no place: transformers would report them as unexpected.
    unknown: frozenset[str]
    # Checkpoint names that only the class without a head reads: a pooler beside a masked-language-model head.
    unread: frozenset[str]
    # Checkpoint name of a tensor that is converted on loading -> canonical names of what it becomes, or a part of.
    converted: Mapping[str, tuple[str, ...]]
    # Canonical names of the stacks of layers and how many layers each has, in the model's order.
    stacks: Mapping[str, int]
    class_name: str | None  # "ViTModel"
    fallback: str | None  # why there is no class, as a clause for the plan: "it has no config.json"


@dataclass(frozen=True)
class LoadCheck:
    """What transformers' loader makes of a checkpoint."""

    problems: tuple[Problem, ...] = ()
    unchecked: str | None = None  # why nothing could be checked, as a clause; None if it was checked

    @property
    def clean(self) -> bool:
        """Checked, and nothing wrong."""
        return not self.problems and self.unchecked is None
