"""Unit tests for dopkit.recipe.settings: gradients and filters, and what is wrong with some."""

from __future__ import annotations

from typing import Any

import pytest

from dopkit.recipe.settings import Place, filters, matches, mistake, possible, resolve, varies

ATTENTION = ("layers.3.self_attn.q_proj.weight", "model.layers.3.self_attn.q_proj.weight")


def at(setting: Any, depth: float = 0.0, names: tuple[str, ...] = ATTENTION) -> Any:
    return resolve({"t": setting}, Place(names, depth)).get("t", "none")


@pytest.mark.parametrize(
    ("points", "depth", "value"),
    [
        ([0, 1], 0.0, 0.0), ([0, 1], 1.0, 1.0), ([0, 1], 0.25, 0.25), ([1, 0.5, 0], 0.75, 0.25), ([0, 2, 1], 0.5, 2.0),
        ([0.7], 0.4, 0.7), ([0, 0.5, 0.3, 0.7, 1], 0.5, 0.3),
    ],
)  # fmt: skip
def test_a_gradient_is_linear_between_its_points(points: list[float], depth: float, value: float) -> None:
    assert at(points, depth) == pytest.approx(value, abs=1e-12)


def test_the_first_filter_counts_that_takes_the_tensor_in() -> None:
    setting = [
        {"filter": "mlp", "value": 1}, {"filter": "self_attn", "value": [0, 1]}, {"filter": "q_proj", "value": 9},
        {"value": 5},
    ]  # fmt: skip
    assert at(setting, 0.5) == 0.5
    assert at(setting, names=("layers.0.mlp.up_proj.weight",)) == 1
    assert at(setting, names=("norm.weight",)) == 5
    assert at(setting[:2], names=("norm.weight",)) == "none"


def test_a_filter_is_a_part_of_a_name_or_a_glob_for_the_whole() -> None:
    assert matches("model.layers.3.", ATTENTION) and matches("layers.3", ATTENTION)
    assert matches("*.q_proj.*", ATTENTION) and matches("layers.[0-4].*", ATTENTION)
    assert not matches("q_proj*", ATTENTION) and not matches("layers.30", ATTENTION)
    assert all(matches(pattern, ATTENTION) for pattern in (None, "", "*"))


def test_what_can_vary() -> None:
    assert [varies(setting) for setting in (1, "norm", ["a", "b"], [], [1, 2], [{"value": 1}])] == [
        False, False, False, False, True, True,
    ]  # fmt: skip
    assert list(possible([{"filter": "a", "value": [1, 2]}, {"value": 3}])) == [1, 2, 3]
    assert list(possible(["a*"])) == [["a*"]]
    assert list(filters([{"filter": "a", "value": [1, 2]}, {"filter": "*", "value": 3}])) == ["a"]


@pytest.mark.parametrize(
    ("setting", "what"),
    [
        ([{"fliter": "a", "value": 1}], "entry 1 has the key 'fliter'; an entry has a 'filter' and a 'value'"),
        ([{"filter": "a"}], "entry 1 has no 'value'"),
        ([{"filter": 3, "value": 1}], "the filter of entry 1 is no text"),
        ([{"value": [{"value": 1}]}], "entry 1 holds filters once more"),
        ([{"value": 1}, {"filter": "a", "value": 1}], "entry 1 counts for every tensor, so those behind it have no effect"),  # noqa: E501
        ([{"filter": "a", "value": [1, 2]}, {"value": 1}], ""),
        ([1, 2], ""),
    ],
)  # fmt: skip
def test_what_is_wrong_with_filters(setting: Any, what: str) -> None:
    assert mistake(setting) == what
