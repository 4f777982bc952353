"""How models, numbers and sections are written everywhere on the page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from dopkit import refs
from dopkit.refs import ModelRef
from dopkit.report.markup import Markup, tag
from dopkit.short_names import short_names

MINUS = "−"
NOTHING = "–"


def section(title: str, *content: str | None) -> Markup:
    return tag("section", tag("h2", title), *content)


def percent(share: float | None) -> str:
    """``0.7264`` as ``72.6``; what is unknown as a dash."""
    return NOTHING if share is None else f"{share * 100:.1f}".replace("-", MINUS)


def points(difference: float) -> str:
    """A difference of two accuracies in points, with its sign: ``+1.2``."""
    shown = f"{difference * 100:+.1f}"
    return "0.0" if float(shown) == 0 else shown.replace("-", MINUS)


def ref_of(written: str) -> ModelRef | None:
    """The model a receipt names, or None when it is not a reference."""
    try:
        return refs.parse(written, Path())
    except ValueError:
        return None


def full_name(written: str) -> str:
    """``user/name``, or the folder's own name: no path of anybody's machine."""
    ref = ref_of(written)
    return written if ref is None else ref.name


def names_of(written: Sequence[str]) -> list[str]:
    """What the models are called where there is little room."""
    found = [ref_of(one) for one in written]
    known = [ref for ref in found if ref is not None]
    return trimmed(short_names(known) if len(known) == len(found) else written)


def trimmed(names: Sequence[str]) -> list[str]:
    """The names without what all of them begin with: ``mnist`` and ``svhn`` for ``clip-mnist`` and ``clip-svhn``."""
    common = os.path.commonprefix(list(names)) if len(set(names)) > 1 else ""
    cut = max(common.rfind(mark) for mark in "-_./") + 1
    return [name[cut:] or name for name in names]


def model(written: str, identity: str) -> tuple[Markup, Markup]:
    """A model of the receipt and where it stands: a link to its commit on the Hub, or a folder."""
    ref = ref_of(written)
    if ref is None or ref.repo is None or ref.adapter is not None:
        return tag("span", full_name(written)), tag("span", "local folder", class_="quiet")
    commit = ref.revision or identity
    address = f"https://huggingface.co/{quote(ref.repo)}/tree/{quote(commit, safe='')}"
    return tag("a", ref.repo, href=address, rel="noreferrer"), tag("code", commit[:12])


def code(written: str) -> Markup:
    return tag("code", written)
