"""The registry: which methods there are, found by name.

Loads neither torch nor any method: a name is looked up, its code imported when a merge runs. Other packages
add methods through the entry point group ``dopkit.methods``; each entry is a ``Method``.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable
from functools import cache
from importlib.metadata import EntryPoint, EntryPoints, entry_points

from dopkit.errors import DopkitError
from dopkit.methods.builtin import BUILTIN
from dopkit.methods.costs import FLOAT32
from dopkit.methods.rule import Cut, Method, Rule, Scale
from dopkit.methods.rules import BASE, DOP_ADAM, DOP_EXACT, EQUAL, HALF, MEAN

__all__ = [
    "BASE", "BUILTIN", "DOP_ADAM", "DOP_EXACT", "EQUAL", "FLOAT32", "HALF", "MEAN", "Cut", "Method", "Rule", "Scale",
    "find", "known", "suggestion",
]  # fmt: skip

GROUP = "dopkit.methods"  # of entry points


def known() -> dict[str, Method]:
    """All methods by name: the built-in ones and those of installed packages, sorted.

    Raises DopkitError when two of them claim one name, or an entry point is not a Method.
    """
    entries = _installed(tuple(sys.path))
    return {name: _only(name, entries) for name in sorted(BUILTIN.keys() | entries.names)}


def find(name: str) -> Method:
    """The method of that name; of other packages' methods no other is loaded.

    Raises DopkitError with the nearest known name, or as ``known`` does.
    """
    entries = _installed(tuple(sys.path))
    names = sorted(BUILTIN.keys() | entries.names)
    if name not in names:
        raise DopkitError(f"unknown method {name!r} ({suggestion(name, names)}known: {', '.join(names)})")
    return _only(name, entries)


@cache
def _installed(path: tuple[str, ...]) -> EntryPoints:
    """The entry points that packages on ``path`` offer; looking through them all takes a moment."""
    return entry_points(group=GROUP)


def _only(name: str, entries: EntryPoints) -> Method:
    claims = sorted({entry.value for entry in entries.select(name=name)})
    if len(claims) > 1 or (claims and name in BUILTIN):
        others = " and ".join(claims)
        what = f"dopkit's own method {name!r} is also offered by" if name in BUILTIN else f"{name!r} is offered by both"
        raise DopkitError(f"{what} {others}; uninstall one")
    return _load(name, claims[0]) if claims else BUILTIN[name]


def _load(name: str, value: str) -> Method:
    try:
        method = EntryPoint(name, value, GROUP).load()
    except Exception as error:  # another package's code: anything may happen
        raise DopkitError(
            f"the installed method {name!r} ({value}) cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(method, Method) or method.name != name:
        raise DopkitError(f"the installed method {name!r} ({value}) is not a dopkit Method of that name")
    return method


def suggestion(word: str, words: Iterable[str]) -> str:
    """``did you mean 'x'? `` or nothing, for the nearest of ``words``."""
    nearest = difflib.get_close_matches(word, list(words), n=1, cutoff=0.6)
    return f"did you mean {nearest[0]!r}? " if nearest else ""
