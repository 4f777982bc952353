"""Parameters that are not the same for every tensor: gradients over the layers, lists of filters. mergekit's grammar.

A setting is a value, a list of numbers (a gradient from the first layer to the last, linear between its points), or a
list of ``{filter, value}`` of which the first counts whose filter a tensor falls under. Knows no method and no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

_KEYS = {"filter", "value"}
_GLOB = frozenset("*?[")


@dataclass(frozen=True)
class Place:
    """Where a tensor stands: the names that filters are held against, and how deep it lies."""

    names: tuple[str, ...]  # the canonical name, and as the checkpoint spells it
    depth: float  # from 0 in the first layer to 1 in the last one; 0 for what is in no layer


def varies(setting: Any) -> bool:
    """Whether it can be another value for another tensor."""
    return is_gradient(setting) or is_filtered(setting)


def is_gradient(setting: Any) -> bool:
    """A list of numbers."""
    return isinstance(setting, list) and bool(setting) and all(_is_number(point) for point in setting)


def is_filtered(setting: Any) -> bool:
    """A list of mappings, right or wrong: ``mistake`` tells."""
    return isinstance(setting, list) and bool(setting) and all(isinstance(entry, dict) for entry in setting)


def mistake(setting: Any) -> str:
    """What is wrong with the form of a setting; "" when nothing is."""
    if not is_filtered(setting):
        return ""
    for number, entry in enumerate(setting, start=1):
        if unknown := sorted(entry.keys() - _KEYS):
            return f"entry {number} has the key {unknown[0]!r}; an entry has a 'filter' and a 'value'"
        if entry.get("value") is None:
            return f"entry {number} has no 'value'"
        if not isinstance(entry.get("filter"), str | None):
            return f"the filter of entry {number} is no text"
        if is_filtered(entry["value"]):
            return f"entry {number} holds filters once more"
        if number < len(setting) and _matches_all(entry.get("filter")):
            return f"entry {number} counts for every tensor, so those behind it have no effect"
    return ""


def possible(setting: Any) -> Iterator[Any]:
    """Every value it may take, of a gradient its points: between them a bounded number stays in its bounds."""
    if is_filtered(setting):
        for entry in setting:
            yield from possible(entry["value"])
    elif is_gradient(setting):
        yield from setting
    else:
        yield setting


def filters(setting: Any) -> Iterator[str]:
    """The filters it holds, those that match everything left out."""
    for entry in setting if is_filtered(setting) else []:
        if not _matches_all(entry.get("filter")):
            yield entry["filter"]


def resolve(settings: Mapping[str, Any], place: Place) -> dict[str, Any]:
    """The parameters in force for one tensor; those without a filter for it are left out."""
    found = {}
    for name, setting in settings.items():
        if not is_filtered(setting):
            found[name] = _at(setting, place.depth)
            continue
        entry = next((entry for entry in setting if matches(entry.get("filter"), place.names)), None)
        if entry is not None:
            found[name] = _at(entry["value"], place.depth)
    return found


def matches(pattern: str | None, names: tuple[str, ...]) -> bool:
    """Whether a filter takes in a tensor of these names: a part of a name, or a glob for all of it."""
    if _matches_all(pattern):
        return True
    assert pattern is not None
    if _GLOB & set(pattern):
        return any(fnmatchcase(name, pattern) for name in names)
    return any(pattern in name for name in names)


def _matches_all(pattern: str | None) -> bool:
    return pattern in (None, "", "*")


def _at(value: Any, depth: float) -> Any:
    """A gradient's value at a depth from 0 to 1, its points evenly spaced."""
    if not is_gradient(value):
        return value
    position = depth * (len(value) - 1)
    before = min(int(position), len(value) - 1)
    after = min(before + 1, len(value) - 1)
    share = position - before
    return float((1 - share) * value[before] + share * value[after])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
