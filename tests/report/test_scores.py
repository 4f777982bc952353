"""The evaluation: means and forgetting against differences worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from dopkit.errors import OutputError
from dopkit.report import scores


def test_over_steps(evaluation: dict[str, Any]) -> None:
    known = scores.read(evaluation)
    assert known is not None
    found = [(row.step, *means) for row, *means in known.over_steps()]
    assert found[0] == (1, 0.944, 0.955, 0.111)  # task-a alone
    assert found[1] == pytest.approx((2, (0.888 + 0.866) / 2, (0.955 + 0.933) / 2, (0.111 + 0.222) / 2))


def test_without_every_expert_there_is_no_mean_of_experts(evaluation: dict[str, Any]) -> None:
    del evaluation["rows"][2]
    known = scores.read(evaluation)
    assert known is not None
    assert [experts for _, _, experts, _ in known.over_steps()] == [0.955, None]


def test_forgetting_counts_from_the_step_of_learning(evaluation: dict[str, Any]) -> None:
    known = scores.read(evaluation)
    assert known is not None
    a, b, text = known.tasks
    assert known.forgotten(a) == [(1, 0.0), (2, pytest.approx(0.944 - 0.888))]
    assert known.forgotten(b) == [(2, 0.0)]
    assert known.learned_at(text) is known.steps[0]  # of no model: where it was first scored
    del evaluation["rows"][3]  # the step at which task-a was learned was not kept
    later = scores.read(evaluation)
    assert later is not None and later.learned_at(a) is None and later.forgotten(a) == []


def test_what_is_unknown_is_no_number(evaluation: dict[str, Any]) -> None:
    evaluation["acc"] = float("nan")
    evaluation["rows"][0]["scores"]["task-a"] = {"value": None}
    known = scores.read(evaluation)
    assert known is not None and known.acc is None and known.rows[0].value(known.tasks[0]) is None
    assert known.rows[0].mean(known.accuracy_tasks) == 0.222


@pytest.mark.parametrize(
    "damage", [{"rows": 3}, {"tasks": [{"name": 1}]}, {"rows": [{"label": "x", "kind": "step", "step": 10**9}]}]
)
def test_damage_is_named(evaluation: dict[str, Any], damage: dict[str, Any]) -> None:
    with pytest.raises(OutputError, match="the evaluation: .* is missing or not what it should be"):
        scores.read(evaluation | damage)
    assert scores.read(None) is None
