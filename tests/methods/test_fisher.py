"""Fisher merging on one tensor: by hand, at its limits, and on losses whose joint minimum is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from methods.folding import distance, family, fold, normal

from dopkit import methods
from dopkit.methods.fisher_parameters import FisherParameters
from dopkit.roles import Role

METHOD = methods.find("fisher")
RULE = METHOD.rule_for(FisherParameters(), "x", Role.LINEAR, (4, 4))


def merged(
    models: list[torch.Tensor],
    fishers: list[torch.Tensor],
    weights: list[float] | None = None,
    sizes: float | None = None,
    **given: Any,
) -> torch.Tensor:
    own = [FisherParameters(weight=weight, **given) for weight in weights or [1.0] * len(models)]
    beside = [{"fisher": fisher} for fisher in fishers]
    known = {} if sizes is None else {"sizes": {"fisher": sizes}}
    return fold(RULE, own, torch.zeros_like(models[0]), models, companions=beside, **known)[0]


def test_a_case_by_hand() -> None:
    """(F_1 W_1 + F_2 W_2) / (F_1 + F_2), in numbers that binary fractions hold."""
    one = torch.tensor([[1.0, 2, 3, 4], [0, 0, 0, 0], [8, 8, 8, 8], [-4, -4, 4, 4]])
    two = torch.tensor([[5.0, 6, 7, 8], [8, 8, 8, 8], [0, 0, 0, 0], [4, 4, -4, -4]])
    first = torch.tensor([[1.0, 1, 1, 1], [3, 1, 0, 2], [0, 1, 3, 6], [1, 3, 1, 3]])
    second = torch.tensor([[1.0, 3, 0, 1], [1, 3, 5, 2], [4, 1, 1, 2], [1, 1, 3, 1]])
    want = torch.tensor([[3.0, 5, 3, 6], [2, 6, 8, 4], [0, 4, 6, 6], [0, -2, -2, 2]])
    assert torch.allclose(merged([one, two], [first, second]), want, rtol=0, atol=1e-5)
    halves = merged([one, two], [first, 3 * second], [3.0, 1.0])
    assert torch.allclose(halves, want, rtol=0, atol=1e-5), "a weight multiplies a Fisher"


def test_equal_fishers_give_the_weighted_mean() -> None:
    base, models = family(6, 8)
    fisher = normal(6, 8, seed=9).square().float() + 0.01
    want = sum(weight * model.double() for weight, model in zip((1, 2, 5), models, strict=True)) / 8
    assert distance(merged(models, [fisher] * 3, [1.0, 2.0, 5.0]), want, base) < 1e-5


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_fisher_without_bounds_picks_its_model(place: int) -> None:
    base, models = family(6, 8)
    fishers = [torch.ones(6, 8) for _ in models]
    fishers[place] *= 1e30
    assert distance(merged(models, fishers), models[place], base) < 1e-5


def test_where_nothing_matters_to_any_model_it_is_their_mean() -> None:
    base, models = family(6, 8)
    fishers = [torch.zeros(6, 8) for _ in models]
    fishers[1][0] = 1.0
    found = merged(models, fishers)
    mean = sum(model.double() for model in models) / 3
    assert distance(found[1:], mean[1:], base[1:]) < 1e-5
    assert distance(found[0], models[1][0], base[0]) < 1e-4  # epsilon is a millionth


def test_the_floor_is_one_of_the_divided_fisher() -> None:
    one, two = torch.zeros(1, 4), torch.ones(1, 4)
    first, second = torch.tensor([[4.0, 2, 1, 0]]), torch.tensor([[2.0, 2, 2, 2]])
    found = merged([one, two], [first, second], sizes=2.0, epsilon=1.0)  # divided: 2 1 .5 0 and 1 1 1 1
    assert torch.allclose(found, torch.tensor([[1 / 3, 0.5, 0.5, 0.5]]))


@pytest.mark.parametrize("count", [2, 5])
def test_the_joint_minimum_of_quadratic_losses(count: int) -> None:
    """Of losses sum_i h_i (w_i - m_i)^2 / 2 with minima m and Fishers h, it is the minimum of their sum, exactly."""
    minima = [normal(8, 3, seed=seed) for seed in range(count)]
    curvatures = [normal(8, 3, seed=50 + seed).square() + 0.1 for seed in range(count)]
    found = merged(minima, curvatures)
    slope = sum(h * (found - m) for h, m in zip(curvatures, minima, strict=True))
    assert float(slope.abs().max()) < 1e-12
    mean = torch.stack(minima).mean(0)

    def loss(w: torch.Tensor) -> float:
        return sum(float((h * (w - m).square()).sum()) / 2 for h, m in zip(curvatures, minima, strict=True))

    assert loss(found) < 0.9 * loss(mean)


@pytest.mark.parametrize("given", [{"epsilon": 0.0}, {"weight": 0.0}, {"weight": -1.0}, {"epsilon": float("nan")}])
def test_what_would_divide_by_zero_is_refused(given: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="greater than 0|finite"):
        FisherParameters.model_validate(given)
