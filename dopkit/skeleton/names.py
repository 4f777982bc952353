"""Which parameter of the model a checkpoint tensor becomes, by transformers' own renaming.

Knows names only: neither roles nor shapes decide here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Anatomy:
    """The parameters and persistent buffers of a model class, and what is particular about some."""

    shapes: dict[str, tuple[int, ...]]  # name inside the class -> shape
    tied: Mapping[str, str]  # twin -> the parameter it shares storage with
    prefix: str  # of the base model inside the class ("vit."); empty when the class is its own base model
    base_prefix: str  # the same as transformers knows it, without a dot and whether or not it is there
    ignorable: re.Pattern[str] | None  # names that are silently ignored when the class has no place for them

    @classmethod
    def of(cls, model: Any) -> Anatomy:
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        pairs = model.all_tied_weights_keys.items()
        tied = {twin: source for twin, source in pairs if {twin, source} <= shapes.keys()}
        return cls(shapes, tied, _removable_prefix(model, shapes), model.base_model_prefix, _ignorable(model))

    def canonical(self, name: str) -> str:
        return name.removeprefix(self.prefix)


@dataclass(frozen=True)
class Place:
    """Where one checkpoint tensor goes."""

    canonical: str
    renamed: str  # what transformers' loader calls it, before any conversion
    parameter: str | None  # name inside the class; None when the class has no place for the tensor
    fused: bool = False  # other tensors go into the same parameter
    becomes: tuple[str, ...] = ()  # the parameters that a conversion makes of it, if there is one
    ignored: bool = False  # the class has no place, and says nothing about it


def place_tensors(anatomy: Anatomy, model: Any, names: Iterable[str]) -> dict[str, Place]:
    """The place of every checkpoint tensor; canonical names are unique."""
    renamer = _Renamer(anatomy, model)
    found = {name: renamer(name) for name in names}
    sources = Counter(parameter for _, parameter in found.values() if parameter)
    places: dict[str, Place] = {}
    taken: set[str] = set()
    # Two spellings of one parameter in one checkpoint: the spelling of the class goes first.
    for name in sorted(found, key=lambda name: (found[name][1] != name, name)):
        inside, parameter = found[name]
        source = anatomy.tied.get(inside)
        if source is not None and source not in sources:
            # Only the twin lies on disk: transformers reads the shared parameter from it.
            inside = parameter = source
            sources[source] = 1
        canonical = anatomy.canonical(inside) if parameter else name
        if canonical in taken:
            canonical, parameter = f"{name} (duplicate)", None
        taken.add(canonical)
        if parameter is None:
            ignored = anatomy.ignorable is not None and anatomy.ignorable.search(inside) is not None
            places[name] = Place(canonical, inside, None, ignored=ignored)
        else:
            converted = inside != parameter
            becomes = renamer.targets(inside, parameter) if converted else ()
            places[name] = Place(canonical, inside, parameter, converted and sources[parameter] > 1, becomes)
    return places


class _Renamer:
    """Does to one name what transformers' loader does to it."""

    def __init__(self, anatomy: Anatomy, model: Any) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        transforms = get_model_conversion_mapping(model)
        self._renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
        self._converters = [each for each in transforms if isinstance(each, WeightConverter)]
        self._anatomy = anatomy

    def __call__(self, name: str) -> tuple[str, str | None]:
        """The name before any conversion, and the parameter (None if the class has no such parameter)."""
        from transformers.core_model_loading import rename_source_key

        parameters, base = self._anatomy.shapes, self._anatomy.base_prefix
        parameter, pattern = rename_source_key(name, self._renamings, self._converters, base, parameters)
        if parameter not in parameters and name in parameters:
            return name, name  # the loader takes a name back if renaming led nowhere
        renamed = parameter
        if pattern is not None:
            # Several tensors may be converted to this one parameter: each is known by its name from before.
            renamed, _ = rename_source_key(name, self._renamings, [])
            converted, _ = rename_source_key(renamed, [], self._converters)
            if parameter == f"{base}.{converted}":
                renamed = f"{base}.{renamed}"
            elif converted == f"{base}.{parameter}":
                renamed = renamed.removeprefix(f"{base}.")
        return renamed, parameter if parameter in parameters else None

    def targets(self, renamed: str, parameter: str) -> tuple[str, ...]:
        """All parameters that the conversion of a tensor leads to; ``parameter`` is the first of them."""
        for converter in self._converters:
            first, *others = converter.target_patterns
            if others and first in parameter and converter.rename_source_key(renamed)[1] is not None:
                return parameter, *(parameter.replace(first, other) for other in others)
        return (parameter,)


def answer_of(ask: Callable[[], Any]) -> Any:
    """What a class of transformers says of a part of it; None where it has no such part: it says so in several ways."""
    try:
        return ask()
    except (AttributeError, NotImplementedError):
        return None


def base_prefix(model: Any) -> str:
    """``"vit."`` where the model is a base model and something on top of it; empty if it is one itself."""
    if model.base_model is model:
        return ""
    prefix = f"{model.base_model_prefix}."
    entrance = answer_of(lambda: model.get_input_embeddings())
    names = [name for name, module in model.named_modules() if module is entrance is not None]
    # Some classes call their encoder by that name: with the embeddings left outside it is not the base model.
    return prefix if all(name.startswith(prefix) for name in names) else ""


def _removable_prefix(model: Any, names: Iterable[str]) -> str:
    prefix = base_prefix(model)
    stripped = Counter(name.removeprefix(prefix) for name in names)
    # Where a name exists inside and outside the base model, the prefix is needed to tell them apart.
    return prefix if all(number == 1 for number in stripped.values()) else ""


def _ignorable(model: Any) -> re.Pattern[str] | None:
    # As PreTrainedModel._adjust_missing_and_unexpected_keys does it: the patterns of the class, and two
    # buffers that old checkpoints hold and the class still has, though it no longer saves them.
    patterns = sorted(model._keys_to_ignore_on_load_unexpected or ())
    buffers = [name for name, _ in model.named_buffers()]
    if any(name.endswith("rotary_emb.inv_freq") for name in buffers):
        patterns.append(r"rotary_emb\.inv_freq")
    if any(name.endswith("position_ids") for name in buffers):
        patterns.append(r"(^|\.)position_ids$")
    return re.compile("|".join(f"({pattern})" for pattern in patterns)) if patterns else None
