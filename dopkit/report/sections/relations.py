"""How the task vectors relate: cosines, norms, both by layer, and the tensors that changed most."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median

from dopkit.report.charts import Axes, Line, line_chart
from dopkit.report.markup import Markup, tag
from dopkit.report.relations import Relations
from dopkit.report.scales import plain, short
from dopkit.report.sections.wording import MINUS, NOTHING, code, names_of, section
from dopkit.report.tables import Shaded, bar, key, legend, paragraph, shaded_table, table

_TOP = 8  # rows of the table of most changed tensors
_COLOURS = 6  # lines told apart by style; of more models their range is drawn
_DOTS = 16  # layers whose points are marked


def relations(known: Relations | None) -> Markup:
    """The section; one line that says how to get it when the task vectors were not compared."""
    if known is None or not known.models:
        told = paragraph("Not compared. ", code("dopkit inspect RECIPE"), " computes cosines, norms and ranks.")
        return section("Task vectors", told)
    pair = "pair" if len(known.models) <= _COLOURS else None
    content = [tag("div", _cosines(known) if len(known.models) > 1 else None, _norms(known), class_=pair)]
    if len(layers := known.by_layer()) > 1:
        content.append(_by_layer(known, layers))
    if changed := known.most_changed(_TOP):
        rows = []
        for name, tensor in changed:
            largest = max(range(len(tensor.norms)), key=lambda index: tensor.norms[index] or 0.0)
            who = names_of(known.models)[largest]
            rows.append((code(name), who, short(tensor.norms[largest] or 0.0), _share(tensor.change)))
        caption = "Most changed tensors: the largest task vector relative to the base's tensor"
        content.append(table(caption, ["tensor", "model", "norm", "of the base's"], rows, right=(2, 3)))
    return section("Task vectors", *content)


def _share(share: float | None) -> str:
    return NOTHING if share is None else f"{short(share * 100)}%"


def _cosines(known: Relations) -> Markup:
    others = [
        abs(cosine) for row, values in enumerate(known.cosines)
        for column, cosine in enumerate(values) if cosine is not None and row != column
    ]  # fmt: skip
    top = max(others, default=1.0) or 1.0
    names = names_of(known.models)

    def cell(row: int, column: int) -> Shaded:
        cosine = known.cosines[row][column]
        if row == column or cosine is None:
            return Shaded("1" if row == column else NOTHING)
        shown = f"{cosine:.2f}"
        if float(shown) == 0:
            return Shaded("0.00", 0.0)
        return Shaded(shown.replace("-", MINUS), abs(cosine) / top, negative=cosine < 0)

    rows = [(name, "", [cell(row, column) for column in range(len(names))]) for row, name in enumerate(names)]
    negative = any((cosine or 0) <= -0.005 for values in known.cosines for cosine in values)
    note = "below zero in the other colour" if negative else ""
    table = shaded_table("Cosine similarity of the task vectors, whole model", "", names, rows)
    return tag("div", table, legend("0", plain(round(top, 3)), note))


def _norms(known: Relations) -> Markup:
    top = max((norm for norm in known.norms if norm is not None), default=0.0) or 1.0
    rows = []
    ranks = [known.rank_share(index) for index in range(len(known.models))]
    ranked = any(rank is not None for rank in ranks)
    for name, norm, rank in zip(names_of(known.models), known.norms, ranks, strict=True):
        share = norm / known.base_norm if norm is not None and known.base_norm else None
        length = tag("span") if norm is None else bar(norm / top)
        measured = [_share(rank)] if ranked else []
        rows.append([name, NOTHING if norm is None else short(norm), _share(share), *measured, length])
    base = f"; the base's is {short(known.base_norm)}" if known.base_norm else ""
    energy = f" (of full; holds {known.energy:.5g} of the singular values' sum)" if ranked and known.energy else ""
    head = ["model", "norm", "of the base's", *(["mean rank"] if ranked else []), ""]
    caption = f"Frobenius norms{base}" + (f"; ranks{energy}" if ranked else "")
    return table(caption, head, rows, right=range(1, len(head) - 1))


def _by_layer(known: Relations, layers: dict[int, tuple[list[float | None], float | None]]) -> Markup:
    lines = _norm_lines(known, layers)
    norms = tag(
        "figure",
        tag("figcaption", "Norm of the task vectors by layer, as a share of the base's"),
        line_chart(f"Norms of the task vectors over {len(layers)} layers", lines, Axes("layer", _tick)),
        key([(line.style, line.name) for line in lines]),
    )
    cosines = [(layer, cosine) for layer, (_, cosine) in layers.items()]
    if len(known.models) < 2 or all(cosine is None for _, cosine in cosines):
        return tag("div", norms, class_="pair")
    line = Line("mean cosine", cosines, "merged", dots=len(layers) <= _DOTS)
    chart = line_chart("Mean cosine of all pairs by layer", [line], Axes("layer", lambda value: plain(round(value, 4))))
    caption = tag("figcaption", "Mean cosine of all pairs of task vectors by layer")
    return tag("div", norms, tag("figure", caption, chart), class_="pair")


def _norm_lines(known: Relations, layers: Mapping[int, tuple[list[float | None], float | None]]) -> list[Line]:
    """A line a model; of many models the largest, the median and the smallest norm."""
    dots = len(layers) <= _DOTS
    if len(known.models) <= _COLOURS:
        return [
            Line(name, [(layer, norms[index]) for layer, (norms, _) in layers.items()], f"m{index}", dots=dots)
            for index, name in enumerate(names_of(known.models))
        ]
    found = {layer: sorted(norm for norm in norms if norm is not None) for layer, (norms, _) in layers.items()}
    picks: list[tuple[str, str, Callable[[Sequence[float]], float]]] = [
        ("largest", "expert", max), ("median", "merged", median), ("smallest", "base", min)
    ]  # fmt: skip
    return [
        Line(name, [(layer, pick(norms) if norms else None) for layer, norms in found.items()], style, dots=dots)
        for name, style, pick in picks
    ]


def _tick(value: float) -> str:
    return f"{value * 100:.3g}%"
