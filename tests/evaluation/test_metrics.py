"""ACC and BWT on literal matrices."""

from __future__ import annotations

from typing import Any

import pytest

from dopkit.evaluation.metrics import acc, bwt, final_row

# Accuracy of tasks a, b, c after each step: what was not learned yet is not scored.
MATRIX: list[list[float | None]] = [
    [0.9, None, None],
    [0.8, 0.7, None],
    [0.6, 0.8, 0.5],
]


def tasks(*models: str | None, metric: str = "accuracy") -> list[dict[str, Any]]:
    return [{"name": f"on {model}", "metric": metric, "model": model} for model in models]


def rows(matrix: list[list[float | None]], names: str = "abc") -> list[dict[str, Any]]:
    return [
        {
            "kind": "step",
            "step": step,
            "model": names[step - 1],
            "scores": {f"on {n}": {"value": v} for n, v in zip(names, line, strict=True) if v is not None},
        }
        for step, line in enumerate(matrix, start=1)
    ]


def test_acc_is_the_mean_of_the_last_row() -> None:
    assert acc(tasks(*"abc"), rows(MATRIX)) == pytest.approx((0.6 + 0.8 + 0.5) / 3)


def test_bwt_is_the_mean_change_since_each_task_was_learned() -> None:
    """a: 0.6 - 0.9, b: 0.8 - 0.7; c was learned last and is left out."""
    assert bwt(tasks(*"abc"), rows(MATRIX)) == pytest.approx((-0.3 + 0.1) / 2)


def test_the_order_of_tasks_and_rows_does_not_matter() -> None:
    assert bwt(tasks(*"cab"), rows(MATRIX)[::-1]) == pytest.approx(-0.1)
    assert acc(tasks(*"cab"), rows(MATRIX)[::-1]) == acc(tasks(*"abc"), rows(MATRIX))


def test_two_tasks_of_one_model_count_each() -> None:
    extra = {"name": "more of a", "metric": "accuracy", "model": "a"}
    table = rows(MATRIX)
    for row, value in zip(table, (0.5, 0.4, 0.2), strict=True):
        row["scores"]["more of a"] = {"value": value}
    assert bwt([*tasks(*"abc"), extra], table) == pytest.approx((-0.3 + 0.1 - 0.3) / 3)


def test_a_missing_step_leaves_bwt_unknown_and_acc_known() -> None:
    for missing in (0, 1):
        table = rows(MATRIX)
        del table[missing]
        assert bwt(tasks(*"abc"), table) is None
        assert acc(tasks(*"abc"), table) == pytest.approx(19 / 30)


def test_one_step_has_no_past() -> None:
    assert bwt(tasks("a"), rows([[0.9]], "a")) is None
    assert acc(tasks("a"), rows([[0.9]], "a")) == 0.9


def test_tasks_of_no_model_count_for_acc_alone() -> None:
    table = rows(MATRIX)
    for row in table:
        row["scores"]["on None"] = {"value": 0.1}
    assert acc(tasks("a", "b", "c", None), table) == pytest.approx((0.6 + 0.8 + 0.5 + 0.1) / 4)
    assert bwt(tasks("a", "b", "c", None), table) == pytest.approx(-0.1)


def test_perplexity_is_no_accuracy() -> None:
    assert acc(tasks("a", metric="perplexity"), rows([[9.0]], "a")) is None
    mixed = [*tasks("a", "b"), *tasks("c", metric="perplexity")]
    assert acc(mixed, rows(MATRIX)) == pytest.approx(0.7)


def test_while_a_score_is_missing_there_is_no_number() -> None:
    table = rows(MATRIX)
    del table[2]["scores"]["on b"]
    assert acc(tasks(*"abc"), table) is None and bwt(tasks(*"abc"), table) is None


def test_the_final_row_of_a_plain_model() -> None:
    plain = {"kind": "model", "step": None, "model": None, "scores": {"on None": {"value": 0.4}}}
    assert acc(tasks(None), [plain]) == 0.4
    assert bwt(tasks(None), [plain]) is None
    assert final_row([{**plain, "kind": "expert"}]) is None
