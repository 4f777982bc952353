"""The top of the page: what this is, in a sentence and a few numbers; then what was merged, and how."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from dopkit.errors import count
from dopkit.receipt import objective
from dopkit.report.markup import Markup, tag
from dopkit.report.relations import Relations
from dopkit.report.scales import finite, short
from dopkit.report.scores import Evaluation
from dopkit.report.sections.wording import code, full_name, model, names_of, percent, points, section
from dopkit.report.tables import facts, paragraph, table
from dopkit.units import show_seconds, show_size

_LISTED = 6  # models that the first sentence names


def opening(name: str, done: Mapping[str, Any], scores: Evaluation | None) -> Markup:
    return tag("header", paragraph("Merge report", style="eyebrow"), tag("h1", name),
               paragraph(summary(done, scores), style="lede"), facts(_figures(done, scores), "figures"))  # fmt: skip


def summary(done: Mapping[str, Any], scores: Evaluation | None) -> str:
    """One or two sentences: method, models, base, and how well it went as far as that is known."""
    names = names_of([source["model"] for source in done["models"]])
    listed = ", ".join(names) if len(names) <= _LISTED else f"{', '.join(names[:3])} … {names[-1]}"
    base = f" onto {full_name(done['base']['model'])}" if done["base"] else ""
    text = f"{count(len(names), 'model')} merged{base} by {_method(done)}, in this order: {listed}."
    if scores is not None and scores.acc is not None:
        text += f" Mean accuracy over {count(len(scores.accuracy_tasks), 'task')} is {percent(scores.acc)}%"
        if scores.bwt is not None:
            text += f", backward transfer {points(scores.bwt)} points"
        text += "."
    return text


def _method(done: Mapping[str, Any]) -> str:
    parameters = done.get("parameters")
    solver = parameters.get("solver") if isinstance(parameters, dict) else None
    return f"{done.get('method', 'an unnamed method')}{f' ({solver})' if isinstance(solver, str) else ''}"


def _figures(done: Mapping[str, Any], scores: Evaluation | None) -> list[tuple[str, str]]:
    figures = []
    if scores is not None and scores.acc is not None:
        figures.append(("ACC", f"{percent(scores.acc)}%"))
    if scores is not None and scores.bwt is not None:
        figures.append(("BWT", f"{points(scores.bwt)} points"))
    figures.append(("Tensors", f"{len(done['tensors']):,}"))
    figures.append(("Weights", show_size(sum(shard["bytes"] for shard in done["shards"]))))
    figures.append(("Time", show_seconds(done["run"]["seconds"])))
    figures.append(("Peak memory", show_size(done["run"]["peak_resident_bytes"])))
    return figures


def merged(done: Mapping[str, Any], relations: Relations | None) -> Markup:
    """The models in their order, the parameters in force, and how many tensors each rule got."""
    norms = dict(enumerate(relations.norms, 1)) if relations and len(relations.models) == len(done["models"]) else {}
    head = ["", "model", "commit", "size", *(["task vector"] if norms else [])]
    rows = []
    sources = [("base", done["base"])] if done["base"] else []
    for label, source in [*sources, *((str(step), source) for step, source in enumerate(done["models"], 1))]:
        size = finite(source.get("bytes"))
        row = [label, *model(source["model"], source["identity"]), "" if size is None else show_size(size)]
        if norms:
            norm = norms.get(int(label)) if label != "base" else None
            row.append("" if norm is None else short(norm))
        rows.append(row)
    caption = "Models in the order in which they were merged" + _drawn(done.get("order"))
    if before := finite(done.get("merged_before")):
        caption += f"; the first {before:.0f} were in the merge already"
    if norms:
        caption += "; a task vector's size is its Frobenius norm"
    return section(
        "What was merged",
        table(caption, head, rows, right=(3, 4)),
        _heads(done),
        _rules(done),
        _parameters(done),
        paragraph(f"{clause}.", style="quiet") if (clause := objective(dict(done))) else None,
    )


def _drawn(order: Any) -> str:
    match order:
        case {"shuffle": {"seed": seed}}:
            return f" (drawn with seed {seed})"
    return ""


def _parameters(done: Mapping[str, Any]) -> Markup:
    parameters = done.get("parameters")
    given = parameters.items() if isinstance(parameters, dict) else ()
    pairs: list[tuple[str, str]] = [(code(str(key)), _value(value)) for key, value in given]
    if (scale := finite(done.get("scale"))) not in (None, 1.0):
        pairs.append(("scale of the merged task vector", f"{scale:.5g}"))
    caption = tag("figcaption", "Parameters in force")
    return tag("figure", caption, facts([(code("merge_method"), str(done.get("method", ""))), *pairs]))


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _heads(done: Mapping[str, Any]) -> Markup | None:
    """The output heads that lie beside a merged backbone."""
    rows = [
        (code(head["name"]), code(head["architecture"]), "" if head["labels"] is None else f"{head['labels']:,}")
        for head in done.get("heads") or []
    ]
    head = ["head", "class", "labels"]
    return table("Output heads kept beside the merged backbone", head, rows, right=(2,)) if rows else None


def _rules(done: Mapping[str, Any]) -> Markup:
    rules: dict[str, Counter[str]] = {}
    for tensor in done["tensors"].values():
        rules.setdefault(tensor["rule"], Counter())[tensor["role"]] += 1
    rows = []
    for rule, roles in sorted(rules.items(), key=lambda pair: -pair[1].total()):
        told = ", ".join(f"{number} {role}" for role, number in roles.most_common())
        rows.append((code(rule), f"{roles.total():,}", told))
    return table("Rules and the tensors they were used on", ["rule", "tensors", "of which"], rows, right=(1,))
