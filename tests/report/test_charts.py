"""Charts: every value stands where its axis says, and is told in words too."""

from __future__ import annotations

import re
from typing import Any

import pytest

from dopkit.report.charts import Axes, Grid, Line, grid, line_chart, spread


def places(node: Any) -> list[tuple[float, float]]:
    return [tuple(map(float, pair.split(","))) for pair in node.attributes["points"].split()]  # type: ignore[misc]


def test_lines_lie_where_the_axes_say(parse: Any) -> None:
    line = Line("loss", [(0, 0.0), (1, 10.0), (2, None), (3, 5.0), (4, 2.5)], "merged")
    chart = parse(line_chart("what it shows", [line], Axes("layer", "{:g}".format)))
    svg = chart.find("svg")[0]
    assert svg.attributes["role"] == "img" and svg.attributes["aria-label"] == "what it shows"
    grids = {grid.attributes["y1"]: float(grid.attributes["y1"]) for grid in chart.find("line", class_="grid")}
    heights = sorted(grids.values(), reverse=True)
    assert len(heights) == 5  # 0, 2.5, 5, 7.5, 10
    first, second = chart.find("polyline")  # the gap parts them
    assert [height for _, height in places(first)] == pytest.approx([heights[0], heights[4]], abs=0.1)
    assert [height for _, height in places(second)] == pytest.approx([heights[2], heights[1]], abs=0.1)
    across = [x for x, _ in places(first) + places(second)]
    unit = across[1] - across[0]
    assert across == pytest.approx([across[0] + unit * layer for layer in (0, 1, 3, 4)], abs=0.2)
    said = [dot.text for dot in chart.find("circle")]
    assert said == ["loss, layer 0: 0", "loss, layer 1: 10", "loss, layer 3: 5", "loss, layer 4: 2.5"]


def test_a_logarithmic_axis_leaves_zero_out(parse: Any) -> None:
    line = Line("loss", [(0, 1e-4), (1, 0.0), (2, 1e-2), (3, 1e-3)], "merged")
    chart = parse(line_chart("losses", [line], Axes("layer", "{:g}".format, log=True)))
    assert len(chart.find("circle")) == 3
    (piece,) = chart.find("polyline")
    heights = [height for _, height in places(piece)]
    labels = {text.text for text in chart.find("text")}
    assert {"10⁻⁴", "10⁻³", "10⁻²", "layer"} <= labels
    assert heights[0] < heights[1]  # the larger value is higher up


def test_charts_can_share_an_axis(parse: Any) -> None:
    axes = Axes("layer", "{:g}".format, span=(0.0, 100.0))
    small, large = (parse(line_chart("", [Line("", [(0, top), (1, 0.0)], "")], axes)) for top in (10.0, 100.0))
    ticks = [[text.text for text in chart.find("text")] for chart in (small, large)]
    assert ticks[0] == ticks[1]


@pytest.mark.parametrize("points", [[], [(3, None)], [(3, 1.0)], [(1, 2.0), (5000, 2.0)]])
def test_little_or_much_to_draw(points: list[tuple[float, float | None]], parse: Any) -> None:
    chart = parse(line_chart("", [Line("", points, "")], Axes("step", "{:g}".format)))
    assert len(chart.find("circle")) == sum(value is not None for _, value in points)
    assert len(chart.find("text")) < 30


def test_labels_do_not_lie_on_each_other() -> None:
    assert spread([10, 11, 50], 13, 0, 100) == [10, 23, 50]
    assert spread([95, 96, 97], 13, 0, 100) == [74, 87, 100]
    assert spread([], 13, 0, 100) == []


def test_a_grid_shades_by_value(parse: Any) -> None:
    data = Grid(["q", "k"], [0, 1, 7], [[0.0, 0.5, 1.0], [None, 0.09, 0.95]], 0, 1, "{:.2f}!".format, "{:.1f}".format)
    chart = parse(grid("weights", "layer", data))
    cells = [(cell.attributes["class"], cell.text) for cell in chart.find("rect")]
    assert cells == [
        ("h0", "q, layer 0: 0.00!"), ("h5", "q, layer 1: 0.50!"), ("h9", "q, layer 7: 1.00!"),
        ("h0", "k, layer 1: 0.09!"), ("h9", "k, layer 7: 0.95!"),
    ]  # fmt: skip
    rows = {cell.attributes["y"] for cell in chart.find("rect")}
    columns = sorted({float(cell.attributes["x"]) for cell in chart.find("rect")})
    assert len(rows) == 2 and columns[1] - columns[0] == columns[2] - columns[1]
    assert {"0.0", "0.5", "1.0", "0", "1", "7", "q", "k"} <= {text.text for text in chart.find("text")}


def test_a_wide_grid_prints_no_values_and_few_labels(parse: Any) -> None:
    layers = list(range(126))
    data = Grid(["q"], layers, [[0.5] * 126], 0, 1, str, lambda value: "value")
    chart = parse(grid("", "layer", data))
    texts = [text.text for text in chart.find("text")]
    assert "value" not in texts and len(texts) < 50
    width = float(re.search(r"0 0 (\S+)", chart.find("svg")[0].attributes["viewbox"]).group(1))  # type: ignore[union-attr]
    assert max(float(cell.attributes["x"]) for cell in chart.find("rect")) < width
