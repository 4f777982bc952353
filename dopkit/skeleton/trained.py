"""Which parameters an optimizer trains, in its own order: it numbers them, and knows no names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from dopkit.skeleton.construct import CannotBuild, construct

Shape = tuple[int, ...]
# What transformers' Trainer does not decay by name, beside all layer norms of torch; earlier versions: biases alone.
_UNDECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")
_EARLIER = re.compile(r"bias")


def trained_names(config: Mapping[str, Any] | None, groups: Sequence[Sequence[Shape | None]]) -> list[list[str]]:
    """The names inside the model class of the parameters in each of an optimizer's groups.

    ``groups`` holds the shapes; None is one that is not known. One group is taken for all parameters in the order of
    the class, two for those of transformers' Trainer: with weight decay and without. Raises ValueError with the reason
    why it is neither, as a clause.
    """
    try:
        model = construct(config)
    except CannotBuild as error:
        raise ValueError(f"its parameters are numbered, and the class of the model is not known: {error}") from None
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for twin, source in model.all_tied_weights_keys.items():
        if source in shapes:
            shapes.pop(twin, None)
    for arrangement in _arrangements(model, list(shapes), len(groups)):
        if _fits(arrangement, shapes, groups):
            return arrangement
    found = sum(len(group) for group in groups)
    raise ValueError(
        f"its parameters are numbered, and the {found} of them in {len(groups)} groups are not the {len(shapes)} of "
        f"{type(model).__name__} in the order of the class or of transformers' Trainer"
    )


def _arrangements(model: Any, names: list[str], groups: int) -> Iterator[list[list[str]]]:
    if groups == 1:
        yield [names]
    elif groups == 2:
        for undecayed in _kinds(model):
            yield [[name for name in names if not undecayed(name)], [name for name in names if undecayed(name)]]


def _kinds(model: Any) -> Iterator[Callable[[str], bool]]:
    """What Trainer leaves undecayed, in its present version and in earlier ones."""
    import torch

    norms = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, torch.nn.LayerNorm))

    def kind(pattern: re.Pattern[str]) -> Callable[[str], bool]:
        return lambda name: name.startswith(norms) or pattern.search(name.lower()) is not None

    yield kind(_UNDECAYED)
    yield kind(_EARLIER)


def _fits(arrangement: list[list[str]], shapes: Mapping[str, Shape], groups: Sequence[Sequence[Shape | None]]) -> bool:
    return all(
        len(names) == len(group) and all(own in (None, shapes[name]) for name, own in zip(names, group, strict=True))
        for names, group in zip(arrangement, groups, strict=True)
    )
