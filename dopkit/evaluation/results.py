"""The evaluation as data: its layout, its file, and its table. What it says was computed elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dopkit.evaluation import metrics
from dopkit.writer import write_text

LAYOUT = 1
_NONE = "-"

Evaluation = dict[str, Any]
Known = dict[tuple[str, str], dict[str, Any]]  # weights and digest of a task -> score


def make(
    tasks: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], device: str, versions: Mapping[str, str]
) -> Evaluation:
    """The evaluation as far as its rows are filled."""
    kinds = {task["metric"] for task in tasks}
    told = [name for name in ("acc", "bwt") if "accuracy" in kinds] + [
        name for name in ("perplexity",) if name in kinds
    ]
    return {
        "layout": LAYOUT,
        "tasks": [dict(task) for task in tasks],
        "rows": [{**row, "scores": dict(row["scores"])} for row in rows],
        "acc": metrics.acc(tasks, rows),
        "bwt": metrics.bwt(tasks, rows),
        "definitions": {name: metrics.DEFINITIONS[name] for name in told},
        "device": device,
        "versions": dict(versions),
    }


def known_scores(file: Path) -> Known:
    """The scores that an earlier evaluation left in ``file``; none when it is not there or of another layout."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        digests = {task["name"]: task["digest"] for task in data["tasks"]}
        return {
            (row["weights"], digests[name]): {**score, "value": float(score["value"])}
            for row in data["rows"]
            for name, score in row["scores"].items()
            if data["layout"] == LAYOUT
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def carried(file: Path, tasks: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of sources that ``file`` holds and that are not among ``rows``: they may be gone by now.

    A merged model that has grown keeps what was measured of its base and of its earlier models, on the same ``tasks``.
    """
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        before = {task["name"]: task["digest"] for task in data["tasks"]}
        same = {task["name"] for task in tasks if before.get(task["name"]) == task["digest"]}
        labels = {row["label"] for row in rows}
        found = [row for row in data["rows"] if row["kind"] in ("base", "expert") and row["label"] not in labels]
        return [
            {**row, "scores": {name: score for name, score in row["scores"].items() if name in same}} for row in found
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def outgrown(text: str) -> str:
    """The file's text once its merge has grown: its rows stay true, ACC and BWT were those of an earlier model."""
    try:
        found = json.loads(text)
        summed_up = {name: None for name in ("acc", "bwt") if found[name] is not None}
    except (ValueError, KeyError, TypeError, RecursionError):
        return text
    return _text(found | summed_up) if summed_up else text


def write(file: Path, evaluation: Evaluation) -> None:
    """The file, there whole or not at all."""
    write_text(file, _text(evaluation))


def _text(evaluation: Evaluation) -> str:
    return json.dumps(evaluation, indent=1, ensure_ascii=False) + "\n"


def matrix(evaluation: Evaluation) -> list[list[str]]:
    """The table of scores as text: a heading, then a row for each model. Accuracies in percent."""
    tasks = evaluation["tasks"]
    table = [["", "model", *(task["name"] for task in tasks)]]
    for row in evaluation["rows"]:
        model = row["model"] if row["kind"] == "step" else None
        cells = [_shown(row["scores"].get(task["name"]), task["metric"]) for task in tasks]
        table.append([row["label"], model or "", *cells])
    if all(row[1] == "" for row in table[1:]):
        return [[row[0], *row[2:]] for row in table]
    return table


def sentences(evaluation: Evaluation) -> list[str]:
    """ACC and BWT as far as they are known, each with its definition; and what perplexity is, where it was measured."""
    found = []
    for name in ("acc", "bwt"):
        if evaluation[name] is not None:
            sign = "+" if name == "bwt" else ""
            found.append(f"{evaluation[name]:{sign}.1%} {evaluation['definitions'][name]}")
    if "perplexity" in evaluation["definitions"]:
        found.append(evaluation["definitions"]["perplexity"])
    return found


def _shown(score: Mapping[str, Any] | None, metric: str) -> str:
    if score is None:
        return _NONE
    return f"{100 * score['value']:.1f}" if metric == "accuracy" else f"{score['value']:.4g}"
