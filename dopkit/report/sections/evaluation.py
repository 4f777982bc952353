"""How good the merge is: the matrix of scores, accuracy over the steps, and what was forgotten."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from dopkit.report.charts import Axes, Line, line_chart
from dopkit.report.markup import Markup, tag
from dopkit.report.scales import plain, short
from dopkit.report.scores import Evaluation, Row, Task
from dopkit.report.sections.wording import NOTHING, code, percent, points, section, trimmed
from dopkit.report.tables import Shaded, key, legend, lines, paragraph, shaded_table

_LABELLED = 8  # lines that all get a label at their end
_WORST = 3  # lines that are picked out


def evaluation(scores: Evaluation | None) -> Markup:
    """The section; one line that says how to get it when nothing was evaluated."""
    if scores is None or not scores.rows or not scores.tasks:
        return section("Accuracy", paragraph("Not evaluated. ", code("dopkit eval FOLDER --tasks tasks.yaml"),
                       " scores the merge; ", code("dopkit report FOLDER"), " then shows it here."))  # fmt: skip
    return section(
        "Accuracy" if scores.accuracy_tasks else "Scores",
        *_matrix(scores),
        _over_steps(scores),
        lines(list(scores.definitions.values())) if scores.definitions else None,
    )


def _matrix(scores: Evaluation) -> Sequence[Markup]:
    """Accuracies on one scale with their mean, then what is measured otherwise, each column on its own."""
    tasks, other = scores.accuracy_tasks, [task for task in scores.tasks if not task.accuracy]
    low, high = _ends(scores, tasks)

    def cell(row: Row, task: Task) -> Shaded:
        value = row.value(task)
        if value is None:  # a step has not seen later tasks; elsewhere a score is unknown
            return Shaded("" if row.kind == "step" else NOTHING)
        own = scores.learned_at(task) is row if task.model else False
        if task.accuracy:
            return Shaded(percent(value), (value - low) / (high - low), strong=own)
        return Shaded(short(value), _goodness(scores, task, value), strong=own)

    def cells(row: Row) -> list[Shaded]:
        mean = [Shaded(tag("b", percent(row.mean(tasks))))] if tasks else []
        return [*(cell(row, task) for task in tasks), *mean, *(cell(row, task) for task in other)]

    models = list(dict.fromkeys(row.model for row in scores.rows if row.model))
    shown = dict(zip(models, trimmed(models), strict=True))
    rows = [(_label(row, shown), style, cells(row)) for row, style in _grouped(scores.rows)]
    names = [*(task.name for task in tasks), *(["mean"] if tasks else [])]
    names += [f"{task.name}, {task.metric}" for task in other]
    caption = "Base, experts and steps of the merge by task" if scores.steps else "Models by task"
    caption += "; accuracy in percent" if tasks else ""
    parts = [shaded_table(caption, "", names, rows)]
    if tasks:
        note = "outlined: the step at which the task's own model came in" if scores.steps else ""
        parts.append(legend(f"{percent(low)}%", f"{percent(high)}%", note))
    if other:
        parts.append(legend("worst of the column", "best", "less is better: " + ", ".join(task.name for task in other)))
    return parts


def _ends(scores: Evaluation, tasks: Sequence[Task]) -> tuple[float, float]:
    """The ends of the scale of accuracies, in steps of five percent."""
    values = [value for row in scores.rows for task in tasks if (value := row.value(task)) is not None]
    low = math.floor(min(values, default=0.0) * 20) / 20
    return low, max(math.ceil(max(values, default=1.0) * 20) / 20, low + 0.05)


def _goodness(scores: Evaluation, task: Task, value: float) -> float:
    """Where a score of which less is better stands in its column: 0 is the worst, 1 the best, by the logarithm."""
    known = [math.log(one) for row in scores.rows if (one := row.value(task)) is not None and one > 0]
    if value <= 0 or max(known) == min(known):
        return 0.5
    return (max(known) - math.log(value)) / (max(known) - min(known))


def _label(row: Row, shown: Mapping[str, str]) -> str:
    if row.model is None:
        return row.label
    model = shown.get(row.model, row.model)
    return f"expert {model}" if row.kind == "expert" else f"{row.label} · {model}"


def _grouped(rows: Sequence[Row]) -> list[tuple[Row, str]]:
    """Base, experts, then the rest; a row that opens a group is marked."""
    order = {"base": 0, "expert": 1, "step": 2}
    ordered = sorted(rows, key=lambda row: (order.get(row.kind, 3), row.step or 0))
    return [
        (row, "opens" if index and row.kind != ordered[index - 1].kind else "") for index, row in enumerate(ordered)
    ]


def _over_steps(scores: Evaluation) -> Markup | None:
    if not scores.accuracy_tasks:
        return None
    means = scores.over_steps()
    if len(means) < 2:
        return paragraph("With ", code("dopkit run --save-steps"), ", ", code("dopkit eval"),
                         " scores every step, and accuracy and forgetting are drawn here.", style="quiet")  # fmt: skip
    charts = [_figure("Mean accuracy of the tasks seen so far, percent", *_mean_chart(means))]
    if (forgetting := _forgetting_chart(scores)) is not None:
        charts.append(_figure("Forgetting: accuracy when just learned minus now, points", forgetting))
    return tag("div", *charts, class_="pair")


def _figure(caption: str, *content: Markup) -> Markup:
    return tag("figure", tag("figcaption", caption), *content)


def _mean_chart(found: Sequence[tuple[Row, float, float | None, float | None]]) -> tuple[Markup, Markup]:
    lines = [Line("merged", [(row.step or 0, mean) for row, mean, _, _ in found], "merged")]
    entries = [("merged", "merged")]
    experts = [(row.step or 0, experts) for row, _, experts, _ in found]
    base = [(row.step or 0, base) for row, _, _, base in found]
    for style, name, values in (("expert", "each task's own expert", experts), ("base", "base", base)):
        if any(value is not None for _, value in values):
            lines.append(Line(name, values, style))
            entries.append((style, name))
    first, last = found[0], found[-1]
    said = (
        f"Mean accuracy of the tasks seen so far, from {percent(first[1])} % at {first[0].label} "
        f"to {percent(last[1])} % at {last[0].label}"
    )
    return line_chart(said, lines, Axes("step", lambda value: plain(round(value * 100, 1)))), key(entries)


def _forgetting_chart(scores: Evaluation) -> Markup | None:
    curves = {task.name: scores.forgotten(task) for task in scores.accuracy_tasks}
    curves = {name: curve for name, curve in curves.items() if len(curve) > 1}
    if not curves:
        return None
    worst = sorted(curves, key=lambda name: -curves[name][-1][1])
    picked = worst[:_WORST] if len(curves) > _LABELLED else worst
    few = len(curves) <= _LABELLED
    drawn = [
        Line(name, curve, "worst" if name == worst[0] else "task", name if name in picked else "", dots=few)
        for name, curve in curves.items()
    ]
    if len(curves) > 2:
        steps = sorted({step for curve in curves.values() for step, _ in curve})
        gone = [dict(curve[1:]) for curve in curves.values()]  # the step of learning itself forgets nothing
        means = [(step, [one[step] for one in gone if step in one]) for step in steps]
        drawn.append(Line("mean", [(step, fmean(found)) for step, found in means if found], "merged", "mean"))
    most = worst[0]
    said = f"Forgetting of {len(curves)} tasks over the steps; at the end most of {most}, {points(curves[most][-1][1])}"
    return line_chart(said + " points", drawn, Axes("step", lambda value: plain(round(value * 100, 1)), zero=True))
