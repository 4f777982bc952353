"""What an evaluation says, read with suspicion: the matrix of scores, accuracy over the steps, what was forgotten.

The layout is that of ``dopkit_evaluation.json``. Numbers only: knows no markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Annotated, Any

from pydantic import BaseModel, Field

from dopkit.report.checked import Number, checked


class Score(BaseModel):
    value: Number = None  # accuracy from 0 to 1, or perplexity


class Task(BaseModel):
    name: str
    metric: str
    samples: int | None = None
    model: str | None = None  # that learned it

    @property
    def accuracy(self) -> bool:
        return self.metric == "accuracy"


class Row(BaseModel):
    label: str
    kind: str  # base, expert, step or model
    step: Annotated[int, Field(ge=0, lt=10_000)] | None = None
    model: str | None = None  # that came in at this step, or the expert itself
    scores: dict[str, Score] = {}

    def value(self, task: Task) -> float | None:
        score = self.scores.get(task.name)
        return None if score is None else score.value

    def mean(self, tasks: Sequence[Task]) -> float | None:
        """Over those of the tasks that have a score here."""
        values = [value for task in tasks if (value := self.value(task)) is not None]
        return fmean(values) if values else None


class Evaluation(BaseModel):
    tasks: list[Task]
    rows: list[Row]
    acc: Number = None
    bwt: Number = None
    definitions: dict[str, str] = {}

    @property
    def accuracy_tasks(self) -> list[Task]:
        return [task for task in self.tasks if task.accuracy]

    @property
    def steps(self) -> list[Row]:
        """The rows of the merge itself, from the first model to the last."""
        return sorted((row for row in self.rows if row.kind == "step" and row.step), key=lambda row: row.step or 0)

    def learned_at(self, task: Task) -> Row | None:
        """The step at which the task's own model came in; for a task of no model the first that scored it."""
        scored = [row for row in self.steps if row.value(task) is not None]
        return next((row for row in scored if task.model is None or row.model == task.model), None)

    def expert(self, task: Task) -> float | None:
        """What the task's own expert scores."""
        for row in self.rows:
            if row.kind == "expert" and task.model and (row.model == task.model or row.label == f"expert {task.model}"):
                return row.value(task)
        return None

    def over_steps(self) -> list[tuple[Row, float, float | None, float | None]]:
        """For every step, over the accuracy tasks scored there: the merged model's mean, the experts', the base's.

        The last two are None when a task of the step lacks the score.
        """
        base = next((row for row in self.rows if row.kind == "base"), None)
        found = []
        for row in self.steps:
            seen = [task for task in self.accuracy_tasks if row.value(task) is not None]
            if not seen:
                continue
            experts = _mean_of_all([self.expert(task) for task in seen])
            start = None if base is None else _mean_of_all([base.value(task) for task in seen])
            found.append((row, row.mean(seen) or 0.0, experts, start))
        return found

    def forgotten(self, task: Task) -> list[tuple[int, float]]:
        """Step, and accuracy when just learned minus accuracy now; from the step it was learned at."""
        learned = self.learned_at(task)
        best = None if learned is None else learned.value(task)
        if learned is None or best is None:
            return []
        after = [row for row in self.steps if (row.step or 0) >= (learned.step or 0)]
        return [(row.step or 0, best - value) for row in after if (value := row.value(task)) is not None]


def read(data: Any) -> Evaluation | None:
    """The evaluation inside a receipt, or None when there is none. Raises OutputError when it is damaged."""
    return checked(Evaluation, data, "the evaluation")


def _mean_of_all(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None
