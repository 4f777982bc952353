"""Where a tensor stands in its model: in which stack of layers, in which of its layers, before or behind it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from dopkit.roles import Standing
from dopkit.skeleton.names import Anatomy

_FIRST_NUMBER = re.compile(r"(?:^|(.*?)\.)(\d+)\.")
_ENTRANCE = re.compile(r"emb|wte|wpe|tok")


class Stacks:
    """The stacks of layers of a model class; a list inside a layer, of experts say, is none.

    ``sizes`` maps the canonical name of each (``layers``, ``encoder.layer``) to its number of layers, in the model's
    order; ``order`` maps the canonical names of the model's own tensors to their places.
    """

    def __init__(self, sizes: Mapping[str, int], order: Mapping[str, int]) -> None:
        self.sizes = sizes
        self._order = order
        self._first = {
            stack: min((at for name, at in order.items() if name.startswith(f"{stack}.")), default=0) for stack in sizes
        }

    @classmethod
    def of(cls, model: Any, anatomy: Anatomy) -> Stacks:
        found: dict[str, int] = {}
        within: tuple[str, ...] = ()
        for name, module in model.named_modules():
            if isinstance(module, nn.ModuleList) and len(module) and not name.startswith(within or ("\0",)):
                found[anatomy.canonical(name)] = len(module)
                within = (*within, f"{name}.")
        return cls(found, {anatomy.canonical(name): at for at, name in enumerate(anatomy.shapes)})

    @classmethod
    def guessed(cls, names: Iterable[str]) -> Stacks:
        """From names alone: the first number in a name is that of a layer."""
        sizes: dict[str, int] = {}
        ranks = {}
        for name in names:
            if found := _FIRST_NUMBER.match(name):
                stack = found[1] or ""
                sizes[stack] = max(sizes.get(stack, 0), int(found[2]) + 1)
            ranks[name] = 1 if found else 0 if _ENTRANCE.search(name) else 2
        return cls(sizes, ranks)

    def standing(self, canonical: str, parameter: str | None = None) -> Standing:
        """Of the tensor called ``canonical``, which becomes the ``parameter`` (canonical) or a part of it."""
        for stack, size in self.sizes.items():
            number = inside(stack, canonical).partition(".")[0]
            if number.isdigit():
                return Standing(stack, int(number), int(number) / (size - 1) if size > 1 else 1.0)
        if not self.sizes:
            return Standing()
        nearest = max(self.sizes, key=lambda stack: _common(stack, canonical))  # the first of those alike
        at = self._order.get(parameter or canonical, self._order.get(canonical, 0))
        return Standing(nearest, behind=at > self._first[nearest])


def inside(stack: str, name: str) -> str:
    """What a tensor is called inside its stack (``3.mlp.weight``); empty for one that is not in it."""
    prefix = f"{stack}." if stack else ""
    return name[len(prefix) :] if name.startswith(prefix) else ""


def _common(one: str, other: str) -> int:
    """How many of their first components two names share."""
    number = 0
    for mine, theirs in zip(one.split("."), other.split("."), strict=False):
        if mine != theirs:
            break
        number += 1
    return number
