"""Folds of factors against the folds of the matrices that they are: the same, in the space of the ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from methods.folding import Records, distance, fold, normal

from dopkit.linalg.factors import Factors
from dopkit.methods import factored
from dopkit.methods.coefficients import Turns, coefficients, of_the_rest, turns
from dopkit.methods.delta_parameters import TaskArithmeticParameters
from dopkit.methods.dop_terms import sides_of
from dopkit.methods.fold import Context
from dopkit.methods.parameters import AverageParameters, DopParameters
from dopkit.methods.rule import Rule
from dopkit.methods.rules import DOP_ALL, DOP_EXACT, HALF, MEAN
from dopkit.roles import Role


def arithmetic(weight: float, by: float, normalize: bool = False) -> TaskArithmeticParameters:
    given = {"weight": float(weight), "lambda": float(by), "normalize": normalize}
    return TaskArithmeticParameters.model_validate(given)


SHAPES = [(40, 24), (24, 40), (16, 70), (33, 33)]


def product(shape: tuple[int, int], rank: int, seed: int, decay: float = 1.0) -> Factors:
    """Singular values about ``decay`` apart; the size of what LoRA adds."""
    b = 0.1 * normal(shape[0], rank, seed=seed) * decay ** torch.arange(rank)
    return Factors(b.float(), (0.1 * normal(rank, shape[1], seed=seed + 100)).float())


def whole(one: Factors) -> torch.Tensor:
    return one.b.double() @ one.a.double()


def both(rule: Rule, products: list[Factors], each: list[DopParameters]) -> tuple[float, Records, Records]:
    """How far the fold of the factors is from that of the float64 matrices, and what both recorded."""
    base = torch.zeros(products[0].b.shape[0], products[0].a.shape[1], dtype=torch.float64)
    full, told = fold(rule, each, base, [whole(one) for one in products])
    records: Records = []
    contexts = [Context(own, Role.LINEAR, step, records.append) for step, own in enumerate(each, start=1)]
    kept = [(one.b.clone(), one.a.clone()) for one in products]
    way = factored.folded_in_turn if rule is DOP_EXACT else factored.folded_at_once
    found = way(rule, products, contexts)
    assert all(torch.equal(one.b, b) and torch.equal(one.a, a) for one, (b, a) in zip(products, kept, strict=True))
    assert found.rank == min(sum(one.rank for one in products), *base.shape)
    return distance(whole(found), full, base), told, records


@pytest.mark.parametrize("space", ["uv", "u", "v"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ranks", [(4, 3), (1, 6, 2), (5, 4, 3, 2)])
def test_dop_is_that_of_the_matrices(ranks: tuple[int, ...], shape: tuple[int, int], space: Any) -> None:
    products = [product(shape, rank, seed) for seed, rank in enumerate(ranks)]
    each = [DopParameters(svd_proj_space=space)] * len(ranks)
    off, told, records = both(DOP_EXACT, products, each)
    assert off < 2e-7
    for one, other in zip(records, told, strict=True):
        assert other == pytest.approx(one, rel=1e-5)


@pytest.mark.parametrize(
    "given",
    [
        {"alpha": 0.3},
        {"alpha": "by-count"},
        {"alpha": 0.0},
        {"alpha": 1.0},
        {"svd_epsilon": 0.9},
        {"svd_epsilon": 1.0},
        {"rank_rule": "below", "svd_epsilon": 0.9},
    ],
)
def test_with_other_parameters(given: dict[str, Any]) -> None:
    products = [product((30, 44), rank, seed, decay=0.6) for seed, rank in enumerate((6, 5, 7))]
    off, told, records = both(DOP_EXACT, products, [DopParameters(**given)] * 3)
    assert off < 2e-7
    assert [one["rank_incoming"] for one in records] == [one["rank_incoming"] for one in told]


def test_every_model_may_have_an_alpha_of_its_own() -> None:
    products = [product((30, 44), 3, seed) for seed in range(3)]
    assert both(DOP_EXACT, products, [DopParameters(alpha=alpha) for alpha in (0.5, 0.2, 0.9)])[0] < 2e-7


@pytest.mark.parametrize("absent", [0, 1, 2])
@pytest.mark.parametrize("rule", ["last", "all"])
def test_what_adds_nothing_is_a_task_vector_of_zero(rule: str, absent: int) -> None:
    products = [product((20, 30), 3, seed, decay=0.3) for seed in range(3)]
    products[absent] = Factors(torch.zeros(20, 0), torch.zeros(0, 30))
    chosen = DOP_EXACT if rule == "last" else DOP_ALL[sides_of("uv", Role.LINEAR)]
    given: Any = {"history": rule, "svd_epsilon": 0.9}
    assert both(chosen, products, [DopParameters(**given)] * 3)[0] < 2e-7


def test_ranks_beyond_the_matrix() -> None:
    products = [product((6, 9), rank, seed) for seed, rank in enumerate((7, 4, 5))]
    assert both(DOP_EXACT, products, [DopParameters()] * 3)[0] < 3e-7
    assert both(DOP_ALL[sides_of("uv", Role.LINEAR)], products, [DopParameters(history="all")] * 3)[0] < 3e-7


@pytest.mark.parametrize("space", ["uv", "u", "v"])
def test_all_tasks_at_once(space: Any) -> None:
    products = [product((25, 40), rank, seed) for seed, rank in enumerate((3, 4, 2, 3))]
    parameters = DopParameters(history="all", svd_proj_space=space)
    off, told, records = both(DOP_ALL[sides_of(space, Role.LINEAR)], products, [parameters] * 4)
    assert off < 2e-7
    assert records[-1] == pytest.approx(told[-1], rel=1e-6)


def test_equal_models_stay_that_model() -> None:
    one = product((20, 30), 4, 0)
    contexts = [Context(DopParameters(), Role.LINEAR, step) for step in (1, 2, 3)]
    found = factored.folded_in_turn(DOP_EXACT, [one] * 3, contexts)
    assert distance(whole(found), whole(one), torch.zeros(20, 30)) < 2e-7


def test_going_on_from_what_was_written_gives_the_same_bits() -> None:
    products = [product((20, 30), rank, rank) for rank in (2, 3, 4, 5)]
    contexts = [Context(DopParameters(alpha="by-count"), Role.LINEAR, step) for step in (1, 2, 3, 4)]
    at_once = factored.folded_in_turn(DOP_EXACT, products, contexts)
    two = factored.folded_in_turn(DOP_EXACT, products[:2], contexts[:2])
    read_back = Factors(two.b.clone().contiguous(), two.a.clone().contiguous())
    in_turn = factored.folded_in_turn(DOP_EXACT, [read_back, *products[2:]], contexts[1:])
    assert torch.equal(at_once.b, in_turn.b) and torch.equal(at_once.a, in_turn.a)


def test_nothing_of_the_matrix_is_made() -> None:
    """A matrix of 4e10 entries, folded in the room of its factors."""
    shape = (200_000, 200_000)
    products = [
        Factors(normal(shape[0], 2, seed=seed).float(), normal(2, shape[1], seed=seed + 9).float()) for seed in (0, 1)
    ]
    contexts = [Context(DopParameters(), Role.LINEAR, step) for step in (1, 2)]
    assert factored.folded_in_turn(DOP_EXACT, products, contexts).rank == 4


def test_a_weighted_sum_is_the_factors_side_by_side() -> None:
    products = [product((8, 9), rank, rank) for rank in (2, 1, 3)]
    found = factored.weighted(products, ((1.0, 0.5), (1.0, -2.0), (0.25, 3.0)))
    want = 0.25 * (0.5 * whole(products[0]) - 2 * whole(products[1])) + 3 * whole(products[2])
    torch.testing.assert_close(whole(found), want, rtol=0, atol=1e-8)
    assert found.rank == 6


@pytest.mark.parametrize(
    ("method", "models", "want"),
    [
        ("average", [AverageParameters()] * 3, [1 / 3] * 3),
        ("task_arithmetic", [arithmetic(weight, 0.5) for weight in (1, 2, 3)], [0.5, 1, 1.5]),
        ("task_arithmetic", [arithmetic(weight, 1, True) for weight in (1, 2, 5)], [0.125, 0.25, 0.625]),
        ("task_arithmetic", [arithmetic(weight, 1) for weight in (0, 0, 5)], [0, 0, 5]),
    ],
)
def test_turns_are_the_coefficients(method: str, models: list[Any], want: list[float]) -> None:
    """In one run, and where the first or the first two were merged before."""

    def flat(given: Turns) -> list[float]:
        weights: list[float] = []
        for before, own in given:
            weights = [*(before * weight for weight in weights), own]
        return weights

    assert flat(turns(method, models)) == pytest.approx(want)
    for merged in (1, 2):
        first, *rest = flat(turns(method, models, merged))
        before = coefficients(method, models[:merged])
        assert [first * weight for weight in before] + rest == pytest.approx(want)


def test_turns_of_what_a_method_leaves_to_others() -> None:
    assert of_the_rest(HALF, 3, 2) == ((1.0, 1.0), (0.5, 0.5), (0.5, 0.5))
    assert of_the_rest(MEAN, 3, 1) == ((1.0, 1.0), (0.75, 0.25))
