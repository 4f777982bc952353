"""Results put where a merged model is looked at: its receipt, and its card with the metadata that the Hub reads.

Only what stands between the section's own marks, and ``model-index`` in the metadata, is ever replaced.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dopkit import receipt
from dopkit.checkpoints.files import read_text
from dopkit.evaluation import metrics, results
from dopkit.evaluation.results import Evaluation
from dopkit.writer import EVALUATION, RECEIPT, write_text

CARD = "README.md"
KEY = "evaluation"  # in the receipt
BEGIN, END = "<!-- dopkit evaluation -->", "<!-- end of dopkit evaluation -->"
_SECTION = re.compile(rf"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
_FRONT = re.compile(r"\A---\n(.*?\n)---(?=\n|\Z)", re.DOTALL)
# The key and all that is indented below it; a list may stand at the key's own column.
_INDEX = re.compile(r"^model-index:.*\n(?:(?:[ \t-].*)?\n)*", re.MULTILINE)
_NEXT = "\n## Licences\n"  # the section before which the first one is put
_HUB_TASKS = {"perplexity": "text-generation"}  # the others are called as the Hub calls them


def record(folder: Path, evaluation: Evaluation) -> None:
    """Write the results beside the model: their own file, and for a merge of dopkit also its receipt and card.

    Raises OutputError when the receipt is damaged, CheckpointError when the card is.
    """
    results.write(folder / EVALUATION, evaluation)
    if not (folder / RECEIPT).is_file():
        return
    done = receipt.read(folder)
    write_text(folder / RECEIPT, receipt.to_json({**done, KEY: evaluation}))
    card = folder / CARD
    if card.is_file():
        write_text(card, with_section(read_text(card, str(folder)), evaluation, folder.resolve().name))


def with_section(card: str, evaluation: Evaluation, name: str) -> str:
    """A card with the results in it; ``name`` is the model's where the card has no heading."""
    section = f"{BEGIN}\n{_section(evaluation)}\n{END}"
    if _SECTION.search(card):
        card = _SECTION.sub(lambda _: section, card, count=1)
    elif _NEXT in card:
        card = card.replace(_NEXT, f"\n{section}\n{_NEXT}", 1)
    else:
        card = f"{card.rstrip()}\n\n{section}\n"
    heading = re.search(r"^# (.+)$", card, re.MULTILINE)
    return _with_index(card, model_index(evaluation, heading[1].strip() if heading else name))


def model_index(evaluation: Evaluation, name: str) -> list[dict[str, Any]]:
    """The final model's scores in the Hub's form; [] when it has none."""
    final = metrics.final_row(evaluation["rows"])
    scores = final["scores"] if final is not None else {}
    found = [_result(task, scores[task["name"]]) for task in evaluation["tasks"] if task["name"] in scores]
    return [{"name": name, "results": found}] if found else []


def _result(task: Mapping[str, Any], score: Mapping[str, Any]) -> dict[str, Any]:
    kind = "zero-shot-image-classification" if task.get("zero_shot") else _HUB_TASKS.get(task["kind"], task["kind"])
    # The type is a data set's name on the Hub; one that lies elsewhere has its task's.
    dataset = {"name": task["name"], "type": task["data"] if "split" in task else task["name"]}
    dataset |= {key: task[key] for key in ("config", "split") if key in task}
    metric = {"type": task["metric"], "value": round(score["value"], 6), "name": task["metric"].capitalize()}
    return {"task": {"type": kind}, "dataset": dataset, "metrics": [metric]}


def _with_index(card: str, index: list[dict[str, Any]]) -> str:
    front = _FRONT.match(card)
    if front is None:
        return card if not index else f"---\n{_index_yaml(index)}---\n\n{card}"
    kept = _INDEX.sub("", front[1])
    return f"---\n{kept}{_index_yaml(index)}---{card[front.end() :]}"


def _index_yaml(index: list[dict[str, Any]]) -> str:
    return yaml.safe_dump({"model-index": index}, sort_keys=False, allow_unicode=True) if index else ""


def _section(evaluation: Evaluation) -> str:
    head, *rows = [[cell.replace("|", "\\|") for cell in row] for row in results.matrix(evaluation)]
    lines = [head, ["---"] * len(head), *rows]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    told = [f"- {sentence}" for sentence in results.sentences(evaluation)]
    data = "; ".join(f"{task['name']}: {task['samples']} of {task['data']}" for task in evaluation["tasks"])
    note = "Accuracies are in percent. " if any(task["metric"] == "accuracy" for task in evaluation["tasks"]) else ""
    return "\n".join(["## Evaluation", "", table, "", *told, *([""] if told else []), f"{note}Samples: {data}."])
