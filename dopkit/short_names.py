"""What models are called where there is little room: tables, file names, headings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from dopkit.refs import ModelRef


def short_names(refs: Sequence[ModelRef]) -> tuple[str, ...]:
    """A name for each: the last part of its repository or folder; ``user--name`` where two would be equal.

    Should these be equal too (two revisions of one repository), a number tells them apart.
    """
    last = [_parts(ref)[-1] for ref in refs]
    often = Counter(last)
    longer = [name if often[name] == 1 else "--".join(_parts(ref)[-2:]) for ref, name in zip(refs, last, strict=True)]
    return told_apart(longer)


def told_apart(names: Iterable[str]) -> tuple[str, ...]:
    """The names, with a number behind each that has been there before."""
    apart: list[str] = []
    for name in names:
        number, own = 1, name
        while own in apart:
            number += 1
            own = f"{name}-{number}"
        apart.append(own)
    return tuple(apart)


def _parts(ref: ModelRef) -> list[str]:
    if ref.adapter is not None:
        return _parts(ref.adapter)  # it is what differs from the base
    if ref.folder is not None:
        return [part for part in ref.folder.parts if part != ref.folder.anchor] or ["model"]
    return (ref.repo or ref.text).split("/")
