"""The configuration of a model with other layers in a stack: found by trying which entry changes the stack."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dopkit.skeleton.construct import CannotBuild, construct
from dopkit.skeleton.names import Anatomy
from dopkit.skeleton.stacks import Stacks

_USUAL = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")  # of models whose class cannot be built

Path = tuple[str, ...]


def resized(config: Mapping[str, Any], layers: Mapping[str, Sequence[int]]) -> dict[str, Any] | None:
    """``config`` with each stack of ``layers`` having as many layers as are listed there; None if no entry does that.

    The lists that hold an entry for every layer (``layer_types``) take those of the layers listed.
    """
    result: dict[str, Any] | None = copy.deepcopy(dict(config))
    for stack, taken in layers.items():
        result = result and _one(result, stack, taken)
    return result


def _one(config: dict[str, Any], stack: str, taken: Sequence[int]) -> dict[str, Any] | None:
    sizes = _sizes(config)
    if sizes is None:
        return _unseen(config, taken)
    old = sizes.get(stack)
    if old is None:
        return None
    wanted = {**sizes, stack: len(taken)}
    for path in _entries(config, old):
        tried = _with(config, path, old, taken)
        if _sizes(tried) == wanted:
            return tried
    return None


def _unseen(config: dict[str, Any], taken: Sequence[int]) -> dict[str, Any] | None:
    for key in _USUAL:
        if isinstance(config.get(key), int):
            return _with(config, (key,), config[key], taken)
    return None


def _sizes(config: Mapping[str, Any]) -> dict[str, int] | None:
    try:
        model = construct(config)
    except CannotBuild:
        return None
    return dict(Stacks.of(model, Anatomy.of(model)).sizes)


def _entries(config: Mapping[str, Any], old: int, path: Path = ()) -> Iterator[Path]:
    """Where the number of layers may stand, also where a configuration leaves it at its default."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _entries(value, old, (*path, key))
        elif value == old and isinstance(value, int) and "layer" in key:
            yield (*path, key)
    yield from ((*path, key) for key in _USUAL if key not in config)


def _with(config: Mapping[str, Any], path: Path, old: int, taken: Sequence[int]) -> dict[str, Any]:
    """A copy with the number of layers at ``path``, and with what its neighbours list for every layer."""
    result = copy.deepcopy(dict(config))
    place = result
    for key in path[:-1]:
        place = place[key]
    for key, value in place.items():
        if isinstance(value, list) and len(value) == old and max(taken, default=0) < old:
            place[key] = [value[layer] for layer in taken]
    place[path[-1]] = len(taken)
    return result
