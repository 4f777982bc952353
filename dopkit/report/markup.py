"""HTML and SVG as text that is safe by construction: a plain string is escaped, a ``Markup`` is taken as it is.

Knows no page, chart or number.
"""

from __future__ import annotations

import html
from collections.abc import Iterable

_VOID = {"meta", "col", "br", "hr"}

Attribute = str | float | bool | None


class Markup(str):
    """Text that is markup already. Only this package makes it, and only by the functions below."""

    __slots__ = ()


def text(value: str) -> Markup:
    """Text of others as markup; what does not print (control characters, turned writing direction) becomes ``?``."""
    if isinstance(value, Markup):
        return value
    seen = "".join(character if character.isprintable() or character == "\n" else "?" for character in value)
    return Markup(html.escape(seen))


def tag(name: str, /, *content: str | None, **attributes: Attribute) -> Markup:
    """One element: ``tag("td", "a < b", class_="num")``. None is left out; ``_`` in an attribute's name means ``-``."""
    given = "".join(_attribute(key, value) for key, value in attributes.items() if value is not None)
    if name in _VOID:
        return Markup(f"<{name}{given}>")
    return Markup(f"<{name}{given}>{join(content)}</{name}>")


def join(parts: Iterable[str | None], between: str = "") -> Markup:
    """Pieces one after the other, those that are None or empty left out."""
    return Markup(text(between).join(text(part) for part in parts if part))


def number(value: float) -> str:
    """A coordinate with a tenth of a pixel, as short as it goes."""
    return f"{round(value, 1) + 0.0:.10g}"


def _attribute(key: str, value: Attribute) -> str:
    name = key.removesuffix("_").replace("_", "-")
    if value is True:
        return f" {name}"
    if value is False:
        return ""
    return f' {name}="{text(value) if isinstance(value, str) else number(float(value or 0))}"'
