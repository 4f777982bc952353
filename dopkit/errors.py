"""Every error dopkit raises on purpose, and how a list of problems becomes one message.

    DopkitError
    ├── RecipeError        a recipe or task file: spelling, values, unknown keys
    ├── CheckpointError    a source cannot be read, or is not what it says it is
    ├── HubError           the Hub cannot be reached, or refuses
    ├── PlanError          the recipe is well-formed, but this merge cannot work
    ├── OutputError        the output folder is in the way, busy, or full
    ├── MergeError         a run failed in the middle (a tensor is not finite, say)
    ├── VerificationError  the finished folder is not what the plan promised
    └── EvaluationError    a model cannot be scored on a task, or its data cannot be read

Only this tree is caught at the command line; anything else is a bug and keeps its traceback.
This module does not know where errors are shown.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where, what, and what to do next."""

    place: str  # "line 3", a tensor name, a model ref; empty when the message says it all
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        text = ": ".join(part for part in (self.place, self.what) if part)
        return "\n    ".join(part for part in (text, self.remedy) if part)


class DopkitError(Exception):
    """The root of the tree.

    ``headline`` is one sentence; ``problems`` are all the things wrong, in reading order.
    """

    def __init__(self, headline: str, problems: Iterable[Problem] = ()) -> None:
        self.headline = headline
        self.problems = tuple(problems)
        super().__init__(headline)

    def as_problem(self) -> Problem:
        """The error as one problem among others: its headline with the first thing that is wrong."""
        first = self.problems[0] if self.problems else Problem("", "")
        what = ": ".join(part for part in (self.headline, first.place, first.what) if part)
        return Problem("", what, first.remedy)

    def as_problems(self) -> list[Problem]:
        """Each thing that is wrong as one problem among others, the headline before it."""
        if len(self.problems) < 2:
            return [self.as_problem()]
        return [
            Problem(": ".join(filter(None, (self.headline, one.place))), one.what, one.remedy) for one in self.problems
        ]

    def __str__(self) -> str:
        return "\n".join([self.headline, *(f"  {problem}" for problem in self.problems)])


class RecipeError(DopkitError):
    """A recipe or task file is wrong: all its problems at once, each with its line."""


class CheckpointError(DopkitError):
    """A model cannot be read, or is not what its files say."""


class HubError(DopkitError):
    """The Hub cannot be reached or refuses."""


class PlanError(DopkitError):
    """The merge cannot work: all reasons at once, found before any weight is read."""


class OutputError(DopkitError):
    """The output folder is in the way, in use, or there is no room for it."""


class MergeError(DopkitError):
    """A run failed in the middle; running the same command again continues it."""


class VerificationError(DopkitError):
    """The merged folder does not hold what the plan promised."""


class EvaluationError(DopkitError):
    """A model cannot be scored on a task, or the data cannot be read: all reasons at once, before a model runs."""


def count(number: int, noun: str) -> str:
    """``count(1, "problem") == "1 problem"``, ``count(2, "problem") == "2 problems"``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
