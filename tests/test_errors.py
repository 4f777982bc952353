"""Unit tests for dopkit.errors: how problems read."""

from __future__ import annotations

import pickle

import pytest

from dopkit import errors
from dopkit.errors import DopkitError, Problem, count


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (Problem("line 3", "unknown key 'x'"), "line 3: unknown key 'x'"),
        (Problem("line 3", "unknown key 'x'", "Remove it."), "line 3: unknown key 'x'\n    Remove it."),
        (Problem("", "no room", "Free some."), "no room\n    Free some."),
        (Problem("", "", "Free some."), "Free some."),
        (Problem("user/model", ""), "user/model"),
    ],
)
def test_a_problem_is_place_fact_and_remedy(problem: Problem, text: str) -> None:
    assert str(problem) == text


def test_an_error_lists_its_problems_in_order() -> None:
    error = DopkitError("cannot merge: 2 problems", iter([Problem("a", "one", "Do this."), Problem("b", "two")]))
    assert str(error).splitlines() == [
        "cannot merge: 2 problems",
        "  a: one",
        "    Do this.",
        "  b: two",
    ]
    assert error.headline == "cannot merge: 2 problems"
    assert error.problems == (Problem("a", "one", "Do this."), Problem("b", "two"))


def test_an_error_without_problems_is_its_headline() -> None:
    assert str(DopkitError("nothing to do")) == "nothing to do"


def test_an_error_survives_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(errors.PlanError("cannot merge", [Problem("a", "one")])))
    assert type(error) is errors.PlanError
    assert str(error) == "cannot merge\n  a: one"


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = [line.split()[1] for line in (errors.__doc__ or "").splitlines() if "──" in line]
    classes = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, DopkitError)}
    assert sorted(drawn) == sorted(cls.__name__ for cls in classes - {DopkitError})


@pytest.mark.parametrize(("number", "text"), [(0, "0 tensors"), (1, "1 tensor"), (2, "2 tensors")])
def test_count(number: int, text: str) -> None:
    assert count(number, "tensor") == text


def test_an_error_as_one_problem_among_others() -> None:
    error = DopkitError("cannot read it", [Problem("a file", "is short", "Fetch it again."), Problem("", "more")])
    assert error.as_problem() == Problem("", "cannot read it: a file: is short", "Fetch it again.")
    assert DopkitError("gone").as_problem() == Problem("", "gone")


def test_an_error_as_all_of_its_problems() -> None:
    error = DopkitError("cannot read it", [Problem("a file", "is short", "Fetch it again."), Problem("", "more")])
    assert error.as_problems() == [
        Problem("cannot read it: a file", "is short", "Fetch it again."),
        Problem("cannot read it", "more"),
    ]
    assert DopkitError("gone").as_problems() == [Problem("", "gone")]
