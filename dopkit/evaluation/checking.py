"""Everything that is to be scored, looked at before a model runs: models, data, labels; every problem is found."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dopkit import loading
from dopkit.errors import DopkitError, EvaluationError, Problem, count
from dopkit.evaluation.data import Samples, label_problem, open_samples
from dopkit.evaluation.reading import Reading, find_reading, head_of
from dopkit.evaluation.tables import digest, file_digest, optional
from dopkit.evaluation.targets import Target, weights_digest
from dopkit.evaluation.tasks import Task
from dopkit.loading import Head
from dopkit.planning.heads import head_file
from dopkit.refs import ModelRef


class Checked:
    """What is to be done; ``notes`` tell what is left out. Raises EvaluationError with every problem that there is."""

    def __init__(self, targets: Sequence[Target], tasks: Sequence[Task]) -> None:
        self.notes: list[str] = []
        self._problems: list[Problem] = []
        self._digests: dict[Path, str] = {}
        self._copies: dict[ModelRef, Path] = {}
        self._failed: set[str] = set()
        self._judged: set[tuple[str, tuple[str, ...]]] = set()
        heads = {folder: self._heads(folder) for folder in dict.fromkeys(target.heads for target in targets)}
        kept = {name for found in heads.values() for name in found}
        merged = list(dict.fromkeys(name for target in targets for name in target.seen or ()))
        self.tasks = [one for task in tasks if (one := self._with_model(task, kept, merged))]
        if not self.tasks:
            raise EvaluationError("there is nothing to score", [Problem("", note) for note in self.notes])
        self.samples = {task.name: found for task in self.tasks if (found := self._open(task))}
        self._readings: dict[tuple[Target, str], Reading] = {}
        for target in targets:
            for task in self.tasks:
                if applies(task, target) and task.name not in self._failed:  # the next step fails likewise
                    self._read(task, target, heads[target.heads])
        if self._problems:
            order = {task.name: place for place, task in enumerate(tasks)}
            problems = sorted(dict.fromkeys(self._problems), key=lambda problem: order.get(problem.place, -1))
            raise EvaluationError(f"cannot evaluate: {count(len(problems), 'problem')}", problems)

    def reading(self, target: Target, task: Task) -> Reading | None:
        """How the task is read from the target; None when it is not scored on it."""
        return self._readings.get((target, task.name))

    def facts(self, task: Task) -> dict[str, Any]:
        """The task as the evaluation names it."""
        samples = self.samples[task.name]
        dataset = {"split": task.split, "config": task.config} if task.dataset is not None else {}
        return {
            "name": task.name,
            "kind": task.kind,
            "metric": task.metric,
            "samples": samples.rows,
            "model": task.model,
            "data": task.shown_data,
            **{key: value for key, value in dataset.items() if value},
            **({"zero_shot": True} if task.zero_shot else {}),
            "digest": self._digest(task, samples),
        }

    def _digest(self, task: Task, samples: Samples) -> str:
        """Of all that the scores depend on besides the weights that are scored."""
        readings = [(target, reading) for (target, name), reading in self._readings.items() if name == task.name]
        heads = {target.heads / head_file(reading.head) for target, reading in readings if reading.head is not None}
        bases = {reading.base for _, reading in readings if reading.base is not None}
        used = sorted(self._of(path) for path in heads | bases)
        return digest([json.dumps(task.settings, sort_keys=True), samples.columns, samples.identity, used])

    def _of(self, path: Path) -> str:
        if path not in self._digests:
            self._digests[path] = weights_digest(path) if path.is_dir() else file_digest(path)
        return self._digests[path]

    def _copy(self, ref: ModelRef) -> Path:
        """The folder of a model, which on the Hub is asked for once."""
        if ref not in self._copies:
            self._copies[ref] = loading.local_copy(ref)
        return self._copies[ref]

    def _heads(self, folder: Path) -> Mapping[str, Head]:
        try:
            return loading.heads(folder)
        except DopkitError as error:
            self._problems.append(error.as_problem())
            return {}

    def _with_model(self, task: Task, heads: set[str], merged: Sequence[str]) -> Task | None:
        """The task with the model that learned it, as the merge calls it; None when that one is not merged here.

        One task file serves a merge that grows: a task may be that of a model which is added later.
        """
        if not merged:  # no merge of dopkit
            return replace(task, model=None)
        if task.model is None:
            head = head_of(task, heads)
            return replace(task, model=head if head in merged else None)
        for name in (task.model, task.model.replace("/", "--"), task.model.rpartition("/")[2]):
            if name in merged:
                return replace(task, model=name)
        self.notes.append(f"{task.name} is left out: its model {task.model} is not merged here ({', '.join(merged)})")
        return None

    def _open(self, task: Task) -> Samples | None:
        try:
            if task.kind == "image-classification":
                optional("PIL.Image", "image classification")
            return open_samples(task)
        except DopkitError as error:
            self._add(error, task)
            return None

    def _read(self, task: Task, target: Target, heads: Mapping[str, Head]) -> None:
        try:
            reading = find_reading(task, target, heads, self._copy)
        except DopkitError as error:
            self._failed.add(task.name)
            self._add(error, task)
            return
        self._readings[target, task.name] = reading
        samples, judged = self.samples.get(task.name), (task.name, reading.classes)
        if samples is not None and reading.classes and judged not in self._judged:
            self._judged.add(judged)
            problem = label_problem(samples, reading.classes, reading.shown)
            self._problems += [problem] if problem else []

    def _add(self, error: DopkitError, task: Task) -> None:
        """An error about a task, as its problem."""
        if error.problems and all(problem.place == task.name for problem in error.problems):
            self._problems += error.problems
        else:
            problem = error.as_problem()
            self._problems.append(replace(problem, place=task.name, what=problem.what.removeprefix(f"{task.name}: ")))


def applies(task: Task, target: Target) -> bool:
    """Whether a task is scored on a model: at a step, those of the models merged so far, and those of no model."""
    return task.model is None or target.seen is None or task.model in target.seen
