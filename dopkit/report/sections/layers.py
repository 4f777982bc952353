"""What happened inside: each step in numbers, losses by layer and part, weights, ranks, time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dopkit.errors import count
from dopkit.report.charts import Axes, Grid, Line, grid, line_chart
from dopkit.report.layers import LOSSES, OBJECTIVE, Matrix, Solved, Tally
from dopkit.report.markup import Markup, join, tag
from dopkit.report.scales import brief, short
from dopkit.report.sections.wording import NOTHING, code, names_of, section
from dopkit.report.tables import key, legend, paragraph, table
from dopkit.units import show_seconds, show_shape

_PANELS = 16  # parts drawn; a model has seldom more, and the table holds the rest
_TOP = 8  # rows of the tables of single matrices
_DOTS = 16  # layers whose points are marked
_EQUAL = 0.02  # ranks that differ by no more share of the full rank are told in a sentence


def layers(solved: Solved, done: Mapping[str, Any]) -> Markup | None:
    """The section; nothing when no step of any matrix was recorded."""
    if not solved.matrices:
        return None
    return section(
        "Layer by layer",
        _steps(solved, done),
        _losses(solved),
        _parts(solved),
        tag("div", _weights(solved), _ranks(solved), _time(solved), class_="grids"),
        _single(solved.matrices),
    )


def _arrow(sums: Mapping[str, float], what: str) -> str:
    before, after = sums.get(f"{what}_before"), sums.get(f"{what}_after")
    return NOTHING if before is None or after is None else f"{brief(before)} → {brief(after)}"


def _left(sums: Mapping[str, float]) -> str:
    before, after = (sums.get(key) for key in OBJECTIVE)
    return _share(after / before) if before and after is not None else NOTHING


def _share(share: float | None) -> str:
    return NOTHING if share is None else f"{share * 100:.1f}%"


def _seconds(seconds: float) -> str:
    return show_seconds(seconds) if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3g}"


def _columns(tallies: Sequence[Tally]) -> list[tuple[str, Callable[[Tally], str]]]:
    """The columns that have something to say about any of these rows."""
    columns: list[tuple[str, Callable[[Tally], str], bool]] = [
        ("matrices", lambda one: f"{one.matrices:,}", True),
        ("stability", lambda one: _arrow(one.sums, "stability"), _any(tallies, "stability_after")),
        ("plasticity", lambda one: _arrow(one.sums, "plasticity"), _any(tallies, "plasticity_after")),
        ("objective", lambda one: _left(one.sums), _any(tallies, "objective_after")),
        ("weight", lambda one: _number(one.mean("weights")), any(one.weights for one in tallies)),
        ("rank, merged", lambda one: _share(one.mean("ranks_merged")), any(one.ranks_merged for one in tallies)),
        ("rank, incoming", lambda one: _share(one.mean("ranks_incoming")), any(one.ranks_incoming for one in tallies)),
    ]
    return [(name, show) for name, show, known in columns if known]


def _any(tallies: Sequence[Tally], loss: str) -> bool:
    return any(loss in one.sums for one in tallies)


def _steps(solved: Solved, done: Mapping[str, Any]) -> Markup | None:
    if not solved.by_step:
        return None
    columns = _columns(list(solved.by_step.values()))
    names = names_of([source["model"] for source in done["models"]])
    rows = []
    for step, tally in solved.by_step.items():
        model = names[step - 1] if 0 < step <= len(names) else ""
        rows.append((str(step), model, *(show(tally) for _, show in columns)))
    head = ["step", "model", *(name for name, _ in columns)]
    caption = (
        "What each step did: stability and plasticity loss over all matrices, "
        "before (at the mean of the pair) and after; objective: what is left of it"
    )
    return table(caption, head, rows, right=range(2, len(head)))


def _parts(solved: Solved) -> Markup | None:
    if not solved.by_part:
        return None
    columns = _columns(list(solved.by_part.values()))
    rows = [
        (part, *(show(tally) for _, show in columns), _seconds(tally.seconds)) for part, tally in solved.by_part.items()
    ]
    head = ["part", *(name for name, _ in columns), "time"]
    return table("Each part over all layers and steps", head, rows, right=range(1, len(head)))


def _losses(solved: Solved) -> Markup | None:
    """A panel a part, all on one logarithmic axis: losses over the layers, before dashed and after solid."""
    drawn = [name for name in LOSSES if _any(list(solved.by_part.values()), name)] or list(OBJECTIVE)
    tallies = [tally for layers in solved.parts.values() for tally in layers.values()]
    values = [value for tally in tallies for name in drawn if (value := tally.sums.get(name)) is not None and value > 0]
    if not values:
        return None
    largest = sorted(solved.by_part, key=lambda part: -max(solved.by_part[part].sums.values(), default=0.0))
    shown = [part for part in solved.parts if part in largest[:_PANELS]]
    span, few = (min(values), max(values)), len(solved.layers) <= _DOTS
    axes = Axes("layer", short, log=True, width=300, height=180, span=span)
    panels = []
    for part in shown:
        lines = [
            Line(_spoken(name), [(at, _loss(solved.parts[part].get(at), name)) for at in solved.layers], name, dots=few)
            for name in drawn
        ]
        sums = solved.by_part[part].sums
        said = f"{part}, {count(len(solved.parts[part]), 'layer')}: " + "; ".join(
            f"{what} loss {_arrow(sums, what)}" for what in ("stability", "plasticity") if f"{what}_after" in sums
        )
        panels.append(tag("figure", tag("figcaption", part), line_chart(said, lines, axes)))
    left = len(solved.parts) - len(shown)
    more = f" The {_PANELS} parts with the largest losses; the table has the other {left}." if left else ""
    told = "Losses by layer, summed over the steps, on one logarithmic axis (zero has no place on it)."
    return join([
        tag("h3", "Losses"), paragraph(told + more, style="quiet"), key([(name, _spoken(name)) for name in drawn]),
        tag("div", *panels, class_="panels"),
    ])  # fmt: skip


def _loss(tally: Tally | None, name: str) -> float | None:
    return None if tally is None else tally.sums.get(name)


def _spoken(name: str) -> str:
    return name.replace("_", " ")


def _weights(solved: Solved) -> Markup | None:
    by_step = {step: tally.weights for step, tally in solved.by_step.items() if tally.weights}
    if not by_step:
        return None
    title = tag("h3", "Weight of stability")
    spread = max(max(weights) - min(weights) for weights in by_step.values())
    if spread < 1e-6:
        first = {step: f"{weights[0]:.3g}" for step, weights in by_step.items()}
        if len(set(first.values())) == 1:
            told = f"{next(iter(first.values()))} for every matrix at every step."
        else:
            told = "; ".join(f"step {step}: {weight}" for step, weight in first.items()) + ", for every matrix."
        return tag("div", title, paragraph(told))
    told = "The weight chosen for each matrix at the end, mean over the steps; the rest is plasticity's."
    return _shades(solved, title, told, lambda tally: tally.mean("weights"), lambda value: f"{value:.3f}",
                   lambda value: f"{value:.2f}")  # fmt: skip


def _ranks(solved: Solved) -> Markup | None:
    """The incoming model's; the merged model's is in the tables."""
    title = tag("h3", "Rank kept")
    found = [rank for tally in solved.by_step.values() for rank in tally.ranks_incoming]
    if not found:
        ranked = any(tally.unmeasured for tally in solved.by_step.values())
        return tag("div", title, paragraph("The weight files are not here to tell the full ranks.")) if ranked else None
    if max(found) - min(found) <= _EQUAL:
        told = f"The incoming task vectors' projections kept {_share(min(found))} to {_share(max(found))} of full rank."
        return tag("div", title, paragraph(told))
    told = "Rank of the incoming task vector's projection as a share of full rank, mean over the steps."
    return _shades(solved, title, told, lambda tally: tally.mean("ranks_incoming"), _share,
                   lambda value: f"{value * 100:.0f}")  # fmt: skip


def _time(solved: Solved) -> Markup | None:
    if not any(tally.seconds for tally in solved.by_part.values()):
        return None
    told = "Seconds over all steps, reading and writing left out."
    return _shades(solved, tag("h3", "Time"), told, lambda tally: tally.seconds, _seconds,
                   lambda value: f"{value:.2g}" if value < 10 else f"{value:.0f}")  # fmt: skip


def _shades(
    solved: Solved,
    title: Markup,
    told: str,
    pick: Callable[[Tally], float | None],
    show: Callable[[float], str],
    brief: Callable[[float], str],
) -> Markup | None:
    """A row a part, a column a layer."""
    cells = [
        [None if (tally := layers.get(at)) is None else pick(tally) for at in solved.layers]
        for layers in solved.parts.values()
    ]
    known = [value for row in cells for value in row if value is not None]
    if not known:
        return None
    low, high = min(known), max(known)
    said = f"{told} From {show(low)} to {show(high)}."
    data = Grid(list(solved.parts), solved.layers, cells, low, high, show, brief)
    return tag("div", title, paragraph(told, style="quiet"), grid(said, "layer", data), legend(show(low), show(high)),
               class_="keep")  # fmt: skip


def _single(matrices: Sequence[Matrix]) -> Markup | None:
    """Where the time went, and where the loss is left."""
    content = []
    total = sum(one.seconds for one in matrices)
    if total and len(matrices) > 1:
        slow = sorted(matrices, key=lambda one: -one.seconds)[:_TOP]
        rows = [(code(one.name), _shape(one), _seconds(one.seconds), _share(one.seconds / total)) for one in slow]
        content.append(table("Slowest matrices", ["tensor", "shape", "time", "of all"], rows, right=(1, 2, 3)))
    left = sum(one.after or 0.0 for one in matrices)
    if left and len(matrices) > 1:
        worst = sorted(matrices, key=lambda one: -(one.after or 0.0))[:_TOP]
        rows = [(code(one.name), _of(one.before), _of(one.after), _share((one.after or 0.0) / left)) for one in worst]
        head = ["tensor", "before", "after", "of all"]
        content.append(table("Where most of the objective is left", head, rows, right=(1, 2, 3)))
    return join([tag("h3", "Single matrices"), *content]) if content else None


def _shape(one: Matrix) -> str:
    return NOTHING if one.shape is None else show_shape(tuple(one.shape))


def _of(value: float | None) -> str:
    return NOTHING if value is None else short(value)
