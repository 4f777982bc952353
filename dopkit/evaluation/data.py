"""The samples of a task: its columns found, its labels understood, everything checked before a model runs.

Knows no model, only the names of the classes that a head tells apart.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from dopkit.errors import EvaluationError, Problem
from dopkit.evaluation.images import Pixels, pixels
from dopkit.evaluation.tables import Arrays, ClassFolders, HubDataset, Parquet, Table
from dopkit.evaluation.tasks import Task

# What the columns are called when a task does not say, in order of preference.
_USUAL = {"image": ("images", "image"), "text": ("text",), "label": ("labels", "label")}
_NEEDS = {
    "image-classification": ("image", "label"),
    "text-classification": ("text", "label"),
    "perplexity": ("text",),
}
_READ_ROWS = 1024
_MOST_SHOWN = 5
_LONGEST_SHOWN = 50  # characters of what is no label


@dataclass(frozen=True)
class Samples:
    """The rows of one task that are scored."""

    task: Task
    table: Table
    columns: dict[str, str]  # image, text, label -> the column that holds it
    rows: int

    @cached_property
    def identity(self) -> str:
        """Of the data, whatever the task makes of it."""
        return self.table.identity()

    def images(self, size: int) -> Iterator[list[Pixels]]:
        """uint8 [height, width, 3] each, ``size`` at a time."""
        for values in self._column("image", size):
            try:
                yield [pixels(value) for value in values]
            except ValueError as error:
                raise EvaluationError(f"{self.task.name}: {error}") from None

    def texts(self, size: int) -> Iterator[list[str]]:
        for values in self._column("text", size):
            yield [str(value) for value in values]

    def labels(self, classes: Sequence[str]) -> list[int]:
        """Every label as the place of its class. Raises KeyError with a label that is none."""
        places = {name: index for index, name in enumerate(classes)}
        return [_place(value, places) for values in self._column("label", _READ_ROWS) for value in values]

    def _column(self, role: str, size: int) -> Iterator[Sequence[Any]]:
        name = self.columns[role]
        for batch in self.table.batches([name], size, self.rows):
            yield batch[name]


def open_samples(task: Task) -> Samples:
    """Find a task's data and look at it. Raises EvaluationError with all that is wrong with it."""
    table = _table(task)
    problems: list[Problem] = []
    columns = {role: _column_of(task, table, role, problems) for role in _NEEDS[task.kind]}
    if problems:
        raise EvaluationError(f"{task.name}: the data does not fit the task", problems)
    lengths = {role: table.rows(name) for role, name in columns.items()}
    if len(set(lengths.values())) > 1:
        shown = " and ".join(f"{length} of {columns[role]}" for role, length in lengths.items())
        raise EvaluationError(f"{task.name}: {task.shown_data} holds {shown}")
    rows = min(lengths["text" if "text" in lengths else "image"], task.limit or 1 << 62)
    if rows == 0:
        raise EvaluationError(f"{task.name}: {task.shown_data} is empty")
    samples = Samples(task, table, columns, rows)
    if "image" in columns:
        next(samples.images(1))
    else:
        _check_texts(samples)
    return samples


def label_problem(samples: Samples, classes: Sequence[str], shown: str) -> Problem | None:
    """What is wrong with the labels for a head, shown as ``shown``, that tells ``classes`` apart."""
    name = samples.task.name
    try:
        samples.labels(classes)
    except KeyError as error:
        label = error.args[0]
        if isinstance(label, int):
            return Problem(name, f"the label {label} is outside of what {shown} tells apart: 0 to {len(classes) - 1}")
        if not isinstance(label, str):
            return Problem(name, f"a label is a whole number or a name, but there is {_shown(label)}")
        near = difflib.get_close_matches(label, classes, n=1)
        more = ", ..." if len(classes) > _MOST_SHOWN else ""
        hint = f"did you mean {near[0]!r}?" if near else f"its classes: {', '.join(classes[:_MOST_SHOWN])}{more}"
        return Problem(name, f"the label {label!r} is no class of {shown} ({hint})")
    return None


def _table(task: Task) -> Table:
    if task.dataset is not None:
        return HubDataset(task.dataset, task.config, task.split)
    assert task.path is not None
    if task.path.is_dir():
        return ClassFolders(task.path)
    if not task.path.is_file():
        raise EvaluationError(f"{task.name}: there is no file or folder {task.path}")
    if task.path.suffix == ".parquet":
        return Parquet(task.path)
    if task.path.suffix == ".npz":
        return Arrays(task.path)
    raise EvaluationError(f"{task.name}: {task.path} is neither an .npz nor a .parquet file, nor a folder of images")


def _column_of(task: Task, table: Table, role: str, problems: list[Problem]) -> str:
    wanted = (task.columns[role],) if role in task.columns else _USUAL[role]
    found = [name for name in wanted if name in table.names]
    if found:
        return found[0]
    there = ", ".join(table.names) or "nothing"
    what = f"{task.shown_data} holds no {' or '.join(map(repr, wanted))}; it holds {there}"
    problems.append(Problem(task.name, what, f"Name the column with `{role}:`."))
    return ""


def _check_texts(samples: Samples) -> None:
    something = False
    for values in samples._column("text", _READ_ROWS):
        for value in values:
            if not isinstance(value, str):
                what = f"{samples.columns['text']} holds {type(value).__name__}, no text"
                raise EvaluationError(f"{samples.task.name}: {what}")
            something = something or bool(value.strip())
    if not something:
        raise EvaluationError(f"{samples.task.name}: {samples.task.shown_data} holds no word")


def _shown(label: Any) -> str:
    """What stands in the place of a label, on one line; it may be a whole image."""
    text = " ".join(repr(label).split())
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _place(value: Any, places: dict[str, int]) -> int:
    """The class that a label means: by its number (false is 0, true is 1), or by its name."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str) and value in places:
        return places[value]
    if isinstance(value, int) and 0 <= value < len(places):
        return int(value)
    raise KeyError(value)
