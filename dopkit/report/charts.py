"""Charts as static SVG: lines over steps or layers, and grids of shades.

A chart is about as wide as a phone, so that its labels keep their size there; wide pages put several side by side.
Colours are classes that the page's style sheet gives a meaning, in light and in dark. Knows no receipt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dopkit.report.markup import Markup, join, number, tag
from dopkit.report.scales import Scale, linear, logarithmic, plain, power, shade
from dopkit.report.tables import scrolling

_LETTER = 6.2  # mean width of a letter at the size of chart text
_ROOMY = 14  # columns whose cells can hold a number
_LINE = 13  # least distance of two labels


@dataclass(frozen=True)
class Line:
    """One series. ``style`` is a class of the style sheet; ``label`` stands at its end; None is a gap."""

    name: str
    points: Sequence[tuple[float, float | None]]
    style: str
    label: str = ""
    dots: bool = True


@dataclass(frozen=True)
class Axes:
    """How a line chart is laid out. ``show`` writes a value of the vertical axis where a reader points at it."""

    horizontal: str
    show: Callable[[float], str]
    log: bool = False
    width: int = 340
    height: int = 205
    span: tuple[float, float] | None = None  # values that the vertical axis holds besides the lines', to share it
    zero: bool = False  # draw the line at zero


def line_chart(description: str, lines: Sequence[Line], axes: Axes) -> Markup:
    """Lines over whole numbers (steps, layers). ``description`` is what a screen reader says."""
    right = max((len(line.label) for line in lines), default=0) * _LETTER
    values = [value for line in lines for _, value in line.points if value is not None]
    values += list(axes.span or ()) + ([0.0] if axes.zero else [])
    make = logarithmic if axes.log else linear
    y = make(values, axes.height - 34.0, 10.0)
    labels = [power(tick) if axes.log else axes.show(tick) for tick in y.ticks]
    left = 12 + max(len(label) for label in labels) * _LETTER
    x = _places(lines, left, axes.width - 10 - right)
    return tag(
        "svg",
        _frame(x, y, labels, axes),
        *(_draw(line, x, y, axes) for line in lines),
        _end_labels(lines, x, y),
        class_="chart", viewBox=f"0 0 {axes.width} {axes.height}", role="img", aria_label=description,
    )  # fmt: skip


def _places(lines: Sequence[Line], start: float, end: float) -> Scale:
    """The horizontal axis: as long as the lines, ticks at whole numbers with room for each."""
    found = [place for line in lines for place, _ in line.points]
    low, high = (min(found), max(found)) if found else (0, 1)
    if low == high:
        return Scale(low - 1, high + 1, start, end, (low,))
    most = max(2, int((end - start) / 34))
    stride = next(step for step in (1, 2, 4, 5, 8, 10, 16, 20, 50, 100, 500, 10**5) if (high - low) / step < most)
    ticks = tuple(float(place) for place in range(int(low), int(high) + 1) if (place - int(low)) % stride == 0)
    return Scale(low, high, start, end, ticks)


def _frame(x: Scale, y: Scale, labels: Sequence[str], axes: Axes) -> Markup:
    parts = []
    for value, label in zip(y.ticks, labels, strict=True):
        height = y.at(value) or 0.0
        style = "axis" if value == 0 and axes.zero else "grid"
        parts.append(tag("line", x1=x.start, x2=x.end, y1=height, y2=height, class_=style))
        parts.append(tag("text", label, x=x.start - 6, y=height + 4, text_anchor="end"))
    for value in x.ticks:
        place = x.at(value) or 0.0
        parts.append(tag("text", plain(value), x=place, y=axes.height - 18, text_anchor="middle"))
    middle = (x.start + x.end) / 2
    parts.append(tag("text", axes.horizontal, x=middle, y=axes.height - 3, text_anchor="middle", class_="quiet"))
    return join(parts)


def _draw(line: Line, x: Scale, y: Scale, axes: Axes) -> Markup:
    pieces: list[list[str]] = [[]]
    dots = []
    for place, value in line.points:
        height = None if value is None else y.at(value)
        if value is None or height is None:
            pieces.append([])
            continue
        across = x.at(place) or 0.0
        pieces[-1].append(f"{number(across)},{number(height)}")
        said = f"{line.name}, {axes.horizontal} {plain(place)}: {axes.show(value)}"
        radius = 2.4 if line.dots else 1.2
        dots.append(tag("circle", tag("title", said), cx=across, cy=height, r=radius, class_=line.style))
    paths = [tag("polyline", points=" ".join(piece), class_=line.style) for piece in pieces if len(piece) > 1]
    return join([*paths, *dots])


def _end_labels(lines: Sequence[Line], x: Scale, y: Scale) -> Markup:
    """Each line's label at its end, moved apart where they would overlap."""
    wanted = []
    for line in lines:
        ends = [y.at(value) for _, value in line.points if value is not None]
        if line.label and ends and ends[-1] is not None:
            wanted.append((ends[-1], line))
    wanted.sort(key=lambda pair: pair[0])
    heights = spread([height for height, _ in wanted], _LINE, y.end, y.start)
    return join(
        tag("text", line.label, x=x.end + 6, y=height + 4, class_=f"label {line.style}")
        for height, (_, line) in zip(heights, wanted, strict=True)
    )


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Ascending places moved so that neighbours are ``gap`` apart, within the ends as far as there is room."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap) if moved else max(place, low))
    over = high
    for index in range(len(moved) - 1, -1, -1):
        moved[index] = min(moved[index], over)
        over = moved[index] - gap
    return moved


@dataclass(frozen=True)
class Grid:
    """Shades by row and column; ``cells[row][column]`` is None where there is nothing."""

    rows: Sequence[str]
    columns: Sequence[int]
    cells: Sequence[Sequence[float | None]]
    low: float
    high: float
    show: Callable[[float], str]
    brief: Callable[[float], str]  # without its unit, for cells that have room


def grid(description: str, horizontal: str, data: Grid) -> Markup:
    """A row a part, a column a layer; values stand in the cells where they have room, and are told when pointed at."""
    left = 14 + max(len(row) for row in data.rows) * _LETTER
    roomy = len(data.columns) <= _ROOMY
    wide, high = 44.0 if roomy else max(9.0, 560 / len(data.columns)), 20.0
    width, bottom = left + wide * len(data.columns) + 4, high * len(data.rows)
    parts = []
    for index, row in enumerate(data.rows):
        parts.append(tag("text", row, x=left - 8, y=high * index + 14, text_anchor="end"))
        for column, value in enumerate(data.cells[index]):
            if value is None:
                continue
            said = tag("title", f"{row}, {horizontal} {data.columns[column]}: {data.show(value)}")
            style = f"h{shade(value, data.low, data.high)}"
            x, y = left + wide * column, high * index + 1
            parts.append(tag("rect", said, x=x, y=y, width=wide - 1, height=high - 2, class_=style))
            if roomy:
                at = x + (wide - 1) / 2
                parts.append(tag("text", data.brief(value), x=at, y=y + 13, text_anchor="middle", class_=style))
    stride = next(step for step in (1, 2, 4, 5, 8, 10, 16, 20, 50, 10**5) if wide * step >= 24)
    for column in range(0, len(data.columns), stride):
        place = left + wide * (column + 0.5)
        parts.append(tag("text", str(data.columns[column]), x=place, y=bottom + 14, text_anchor="middle"))
    middle = left + wide * len(data.columns) / 2
    parts.append(tag("text", horizontal, x=middle, y=bottom + 29, text_anchor="middle", class_="quiet"))
    box = f"0 0 {number(width)} {number(bottom + 34)}"
    svg = tag("svg", *parts, class_="chart", viewBox=box, role="img", aria_label=description,
              style=f"min-width:{number(width)}px;max-width:{number(width)}px")  # fmt: skip
    return scrolling(description, svg)
