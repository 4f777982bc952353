"""What models are called where there is little room: tables, file names, headings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from dopkit.refs import ModelRef


def short_names(refs: Sequence[ModelRef]) -> tuple[str, ...]:
    """A name for each: the last part of its repository or folder; ``user--name`` where two would be equal.

    Should these be equal too (two revisions of one repository), a number tells them apart.
    """
    last = [_parts(ref)[-1] for ref in refs]
    often = Counter(last)
    longer = [name if often[name] == 1 else "--".join(_parts(ref)[-2:]) for ref, name in zip(refs, last, strict=True)]
    names: list[str] = []
    for name in longer:
        number, own = 1, name
        while own in names:
            number += 1
            own = f"{name}-{number}"
        names.append(own)
    return tuple(names)


def _parts(ref: ModelRef) -> list[str]:
    if ref.adapter is not None:
        return _parts(ref.adapter)  # it is what differs from the base
    if ref.folder is not None:
        return [part for part in ref.folder.parts if part != ref.folder.anchor] or ["model"]
    return (ref.repo or ref.text).split("/")
