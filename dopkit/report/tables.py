"""Tables, tables of shades, legends and lists as HTML. Knows markup and shades, not what they are about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dopkit.report.markup import Markup, join, tag
from dopkit.report.scales import SHADES, shade

_MANY = 10  # columns of shades from which their heads are turned


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> Markup:
    """A table in a box of its own that scrolls on a phone; ``right`` are the columns of numbers."""

    def cell(column: int, content: str) -> Markup:
        style = "num" if column in right else None
        if column == 0:
            return tag("th", content, scope="row", class_=style)
        return tag("td", content, class_=style)

    top = tag("tr", *(
        tag("th", name, scope="col", class_="num" if column in right else None) for column, name in enumerate(head)
    ))  # fmt: skip
    body = [tag("tr", *(cell(column, content) for column, content in enumerate(row))) for row in rows]
    return _boxed(caption, tag("thead", top), tag("tbody", *body), None)


@dataclass(frozen=True)
class Shaded:
    """One cell of a table of shades. ``share`` places it on the ramp, 0 to 1; None leaves it blank."""

    text: str
    share: float | None = None
    negative: bool = False
    strong: bool = False  # outlined
    said: str | None = None


def shaded_table(
    caption: str, corner: str, head: Sequence[str], rows: Sequence[tuple[str, str, Sequence[Shaded]]]
) -> Markup:
    """A table whose cells are shaded; a row is its label, its class and its cells."""
    top = tag("tr", tag("th", corner, scope="col"), *(tag("th", tag("span", name), scope="col") for name in head))
    body = [
        tag("tr", tag("th", label, scope="row"), *(_shaded(cell) for cell in cells), class_=style or None)
        for label, style, cells in rows
    ]
    many = " many" if len(head) > _MANY else ""
    return _boxed(caption, tag("thead", top), tag("tbody", *body), f"heat{many}")


def _shaded(cell: Shaded) -> Markup:
    classes = []
    if cell.share is not None:
        classes.append(f"{'n' if cell.negative else 'h'}{shade(cell.share, 0, 1)}")
    if cell.strong:
        classes.append("strong")
    return tag("td", cell.text, class_=" ".join(classes) or None, title=cell.said)


def _boxed(caption: str, head: Markup, body: Markup, style: str | None) -> Markup:
    box = scrolling(caption, tag("table", head, body, class_=style))
    return tag("figure", tag("figcaption", caption), box, class_="table")


def scrolling(name: str, content: Markup) -> Markup:
    """A box that scrolls sideways by itself when it is too narrow, also with the keyboard."""
    return tag("div", content, class_="scroll", tabindex=0, role="group", aria_label=name)


def legend(low: str, high: str, note: str = "") -> Markup:
    """The ramp with what its ends mean."""
    steps = [tag("i", class_=f"h{step}") for step in range(SHADES)]
    ramp = tag("span", *steps, class_="ramp", aria_hidden="true")
    return tag("p", tag("span", low), ramp, tag("span", high), tag("span", note, class_="quiet") if note else None,
               class_="legend")  # fmt: skip


def key(entries: Sequence[tuple[str, str]]) -> Markup:
    """What the lines of a chart mean: style and name."""
    samples = [
        tag("span", tag("svg", tag("line", x1=0, x2=26, y1=5, y2=5, class_=style), viewBox="0 0 26 10", width=26,
                        height=10, class_="chart", aria_hidden="true"), name)
        for style, name in entries
    ]  # fmt: skip
    return tag("p", *samples, class_="legend")


def facts(pairs: Sequence[tuple[str, str]], style: str = "facts") -> Markup:
    """Names and values."""
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs), class_=style)


def bar(share: float) -> Markup:
    """A bar as long as its share of the column."""
    width = max(0.0, min(1.0, share)) * 100
    inside = tag("rect", x=0, y=0, width=width, height=8)
    return tag("svg", inside, viewBox="0 0 100 8", preserveAspectRatio="none", class_="bar", aria_hidden="true")


def lines(items: Sequence[str], show: Callable[[str], str] = str) -> Markup:
    return tag("ul", *(tag("li", show(item)) for item in items))


def paragraph(*content: str, style: str | None = None) -> Markup:
    return tag("p", join(content), class_=style)
