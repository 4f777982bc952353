"""Arcs by hand: known angles, known points."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from methods.folding import distance, family, fold, join

from dopkit import methods
from dopkit.methods.parameters import Parameters
from dopkit.roles import Role

EAST, NORTH, UP = (torch.eye(3)[index] for index in range(3))


def given(name: str, **values: Any) -> Parameters:
    return methods.find(name).parameters.model_validate(values)


def joined(name: str, base: torch.Tensor, models: list[torch.Tensor], parameters: Any) -> torch.Tensor:
    first = parameters[0] if isinstance(parameters, list) else parameters
    rule = methods.find(name).rule_for(first, "w", Role.LINEAR, tuple(base.shape))
    return join(rule, parameters, base, models)[0]


def nuslerp(base: torch.Tensor, one: torch.Tensor, two: torch.Tensor, t: float, **values: Any) -> torch.Tensor:
    both = [given("nuslerp", weight=1 - t, **values), given("nuslerp", weight=t, **values)]
    return joined("nuslerp", base, [one, two], both)


def test_slerp_a_third_of_a_right_angle() -> None:
    """30 degrees from east towards north; the lengths are those of the vectors, not of unit ones."""
    found = joined("slerp", EAST, [NORTH], given("slerp", t=1 / 3))
    assert found.tolist() == pytest.approx([math.sqrt(3) / 2, 1 / 2, 0])
    found = joined("slerp", 2 * EAST, [4 * NORTH], given("slerp", t=1 / 3))
    assert found.tolist() == pytest.approx([math.sqrt(3), 2, 0])


@pytest.mark.parametrize("t", [0.0, 0.25, 1.0, 1.5])
def test_slerp_of_nearly_parallel_tensors_is_a_straight_line(t: float) -> None:
    base, (model,) = family(30, 40, count=1, size=0.01)
    assert torch.allclose(joined("slerp", base, [model], given("slerp", t=t)), (1 - t) * base + t * model, atol=1e-6)


def test_the_ends_of_the_arc() -> None:
    base, (model,) = family(5, 6, count=1, size=1.0)
    assert torch.allclose(joined("slerp", base, [model], given("slerp", t=0)), base, atol=1e-6)
    assert torch.allclose(joined("slerp", base, [model], given("slerp", t=1)), model, atol=1e-6)


def test_nuslerp_of_task_vectors() -> None:
    """Half way between east and north, seen from a base."""
    base = torch.tensor([5.0, 5, 5])
    found = nuslerp(base, base + EAST, base + NORTH, 0.5)
    assert found.tolist() == pytest.approx([5 + math.sqrt(0.5), 5 + math.sqrt(0.5), 5])


def test_nuslerp_along_an_axis() -> None:
    """Each row, or each column, is turned by its own angle: as merging it alone does."""
    zero, (one, two) = torch.zeros(4, 5), family(4, 5, count=2, size=1.0)[1]
    rows = nuslerp(zero, one, two, 0.3, nuslerp_flatten=False)
    columns = nuslerp(zero, one, two, 0.3, nuslerp_flatten=False, nuslerp_row_wise=True)
    for index in range(4):
        alone = nuslerp(zero[index], one[index], two[index], 0.3)
        assert torch.allclose(rows[index], alone, atol=1e-6)
        alone = nuslerp(zero[:, index], one[:, index], two[:, index], 0.3)
        assert torch.allclose(columns[:, index], alone, atol=1e-6)


def test_nuslerp_weights_without_a_sum_are_halves() -> None:
    both = [given("nuslerp", weight=1.0), given("nuslerp", weight=-1.0)]
    found = joined("nuslerp", torch.zeros(3), [EAST, NORTH], both)
    assert torch.allclose(found, nuslerp(torch.zeros(3), EAST, NORTH, 0.5))


def test_opposite_vectors_meet_in_the_middle() -> None:
    assert nuslerp(torch.zeros(3), EAST, -EAST, 0.5).tolist() == [0, 0, 0]
    assert joined("karcher", EAST, [EAST, -EAST], given("karcher")).tolist() == [0, 0, 0]


def test_karcher_of_the_three_axes() -> None:
    """The point that is as far from each, at the mean length (1 + 2 + 3) / 3."""
    found = joined("karcher", EAST, [EAST, 2 * NORTH, 3 * UP], given("karcher"))
    assert found.tolist() == pytest.approx([2 / math.sqrt(3)] * 3, rel=1e-5)


def test_karcher_is_where_the_arcs_balance() -> None:
    """The sum of the arcs to all models, as tangent vectors, is zero; the plain mean is not that point."""
    _, models = family(6, 7, count=4, size=1.0)
    found = joined("karcher", models[0], models, given("karcher", max_iter=50, tol=1e-7)).double()
    mean = found / found.norm()
    arcs = torch.zeros_like(mean)
    for model in models:
        unit = model.double() / model.double().norm()
        angle = torch.acos((unit * mean).sum())
        arcs += (unit - (unit * mean).sum() * mean) * angle / angle.sin()
    assert float(arcs.norm()) < 1e-5
    plain = sum(model / model.norm() for model in models)
    assert float((plain / plain.norm() - mean).norm()) > 1e-3


def test_multislerp_by_hand() -> None:
    """Directions east and north, weights 1 and 3, lengths 2 and 4: direction (1, 3), length (2 + 12) / 4."""
    method = methods.find("multislerp")
    both = [given("multislerp", weight=weight) for weight in (1.0, 3.0)]
    rule = method.rule_for(both[0], "w", Role.LINEAR, (3,))
    found = fold(rule, both, torch.zeros(3), [2 * EAST, 4 * NORTH])[0]
    assert found.tolist() == pytest.approx([3.5 / math.sqrt(10), 10.5 / math.sqrt(10), 0])
    both = [given("multislerp", weight=weight, normalize_weights=False) for weight in (1.0, 3.0)]
    found = fold(rule, both, torch.zeros(3), [2 * EAST, 4 * NORTH])[0]
    assert found.tolist() == pytest.approx([14 / math.sqrt(10), 42 / math.sqrt(10), 0])


def test_model_stock_by_hand() -> None:
    """Two task vectors of length 1: at 60 degrees t = 2/3, at 90 the base, at 0 the models, beyond 90 the base."""
    stock = methods.find("model_stock")
    parameters = stock.parameters()
    rule = stock.rule_for(parameters, "w", Role.LINEAR, (3,))
    base = torch.tensor([3.0, 3, 3])
    for degrees, share in ((60, 2 / 3), (90, 0.0), (0, 1.0), (120, 0.0), (180, 0.0)):
        angle = math.radians(degrees)
        other = math.cos(angle) * EAST + math.sin(angle) * NORTH
        found, records = fold(rule, parameters, base, [base + EAST, base + other])
        want = base + share * (EAST + other) / 2
        assert found.tolist() == pytest.approx(want.tolist(), abs=1e-6)
        assert records[-1]["share"] == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_model_stock_is_the_formula_over_pairs(count: int) -> None:
    base, models = family(8, 9, count=count)
    common = 0.03 * family(8, 9, seed=77)[0]
    taus = [(model - base + common).double() for model in models]
    cosines = [float((one * two).sum() / one.norm() / two.norm())
               for index, one in enumerate(taus) for two in taus[:index]]  # fmt: skip
    cosine = sum(cosines) / len(cosines)
    share = count * cosine / (1 + (count - 1) * cosine)
    want = base.double() + share * sum(taus) / count
    method = methods.find("model_stock")
    rule = method.rule_for(method.parameters(), "w", Role.LINEAR, (8, 9))
    assert distance(fold(rule, method.parameters(), base, [model + common for model in models])[0], want, base) < 1e-5


def test_model_stock_by_rows_is_each_row_alone() -> None:
    base, models = family(5, 40, count=3)
    models = [model + 0.02 * base for model in models]
    method = methods.find("model_stock")
    rows = method.parameters.model_validate({"filter_wise": True})
    found = fold(method.rule_for(rows, "w", Role.LINEAR, (5, 40)), rows, base, models)[0]
    alone = method.rule_for(method.parameters(), "w", Role.LINEAR, (40,))
    for index in range(5):
        row = fold(alone, method.parameters(), base[index], [model[index] for model in models])[0]
        assert torch.allclose(found[index], row, atol=1e-6)
