"""DOP over all tasks, and WUDI: against their objectives written out, dense solves, and numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from methods.folding import distance, family, fold, normal

from dopkit.methods.continual_parameters import WudiParameters
from dopkit.methods.dop_terms import Sides
from dopkit.methods.parameters import DopParameters
from dopkit.methods.rules import DOP_ALL, DOP_EXACT, WUDI
from dopkit.methods.task_sums import TaskSums
from dopkit.roles import Role

BOTH, COLUMNS = Sides(True, True), Sides(False, True)
Tensor = torch.Tensor


def dop_all(base: Tensor, models: list[Tensor], role: Role = Role.LINEAR, **given: Any) -> tuple[Tensor, list[Any]]:
    parameters = DopParameters(history="all", **given)
    sides = Sides("u" in parameters.svd_proj_space, "v" in parameters.svd_proj_space)
    rule = DOP_ALL[sides.turned() if role is Role.CONV1D else sides]
    return fold(rule, parameters, base, models, role)


def objective(point: Tensor, base: Tensor, models: list[Tensor], epsilon: float, space: str = "uv") -> Tensor:
    """Sum over the models of || S U^T (W - W_t) ||^2 + || (W - W_t) V S ||^2, with full decompositions, in float64."""
    total = torch.zeros((), dtype=torch.float64)
    for model in models:
        u, s, vh = torch.linalg.svd(model.double() - base.double(), full_matrices=False)
        rank = int((s.cumsum(0) / s.sum() < epsilon - 1e-14).sum()) + 1 if s[0] > 0 else 0
        difference = point.double() - model.double()
        if "u" in space:
            total = total + (s[:rank, None] * (u[:, :rank].mT @ difference)).square().sum()
        if "v" in space:
            total = total + ((difference @ vh[:rank].mT) * s[:rank]).square().sum()
    return total


def dense_minimum(base: Tensor, models: list[Tensor], epsilon: float, space: str) -> Tensor:
    """The minimiser nearest to the mean of the models, from the normal equations of the whole matrix."""
    mean = torch.stack([model.double() for model in models]).mean(0)

    def at(point: Tensor) -> Tensor:
        return objective(point, base, models, epsilon, space)

    point = mean.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(at(point), point)
    hessian = torch.autograd.functional.hessian(at, mean).reshape(mean.numel(), mean.numel())
    step = torch.linalg.pinv(hessian, rtol=1e-10, hermitian=True) @ gradient.reshape(-1)
    return mean - step.reshape(mean.shape)


# DOP over all tasks


def test_diagonal_matrices_by_hand() -> None:
    """Base 0, task vectors diag(2, 1), diag(1, 3), diag(3, 0): entries weigh as their squares.

    (0, 0): (4 * 2 + 1 * 1 + 9 * 3) / 14 = 36 / 14;  (1, 1): (1 * 1 + 9 * 3) / 10 = 2.8.
    At the means (2, 4/3): 2 * (0 + 1 + 9) = 20 and 2 * (1 / 9 + 9 * 25 / 9) = 50 + 2 / 9, both sides counted.
    At the end: 2 * (4 (4/7)^2 + (11/7)^2 + 9 (3/7)^2) = 2 * (64 + 121 + 81) / 49, and 2 * (1.8^2 + 9 * 0.2^2).
    """
    models = [torch.diag(torch.tensor(entries)) for entries in ([2.0, 1.0], [1.0, 3.0], [3.0, 0.0])]
    found, records = dop_all(torch.zeros(2, 2), models)
    torch.testing.assert_close(found, torch.diag(torch.tensor([36 / 14, 2.8])))
    *steps, end = records
    assert [step["rank_incoming"] for step in steps] == [2, 2, 1]
    assert [step["norm_incoming"] for step in steps] == pytest.approx([5**0.5, 10**0.5, 3])
    assert [step["step"] for step in records] == [1, 2, 3, 3]
    assert end["objective_before"] == pytest.approx(20 + 50 + 2 / 9)
    assert end["objective_after"] == pytest.approx(2 * 266 / 49 + 2 * (1.8**2 + 9 * 0.2**2))


def test_disjoint_tasks_in_four_dimensions_by_hand() -> None:
    """Tasks that use different inputs and outputs all keep what they have: no other has a say there."""
    base = torch.arange(16.0).reshape(4, 4)
    models, want = [], base.clone()
    for place, size in enumerate((2.0, 1.0, -3.0)):
        model = base.clone()
        model[place, place] += size
        want[place, place] += size
        models.append(model)
    found, records = dop_all(base, models)
    torch.testing.assert_close(found, want)
    assert records[-1]["objective_after"] == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("shape", [(4, 5), (6, 4), (3, 8), (8, 3), (5, 5)])
@pytest.mark.parametrize("space", ["uv", "u", "v"])
@pytest.mark.parametrize("epsilon", [1.0, 0.9])
def test_the_minimum_of_the_objective(shape: tuple[int, int], space: str, epsilon: float) -> None:
    base, models = family(*shape, count=3, size=0.1)
    found, records = dop_all(base, models, svd_proj_space=space, svd_epsilon=epsilon)
    want = dense_minimum(base, models, epsilon, space)
    assert distance(found, want, base) < 1e-5
    mean = torch.stack([model.double() for model in models]).mean(0)
    before, after = (float(objective(point, base, models, epsilon, space)) for point in (mean, want))
    assert records[-1]["objective_before"] == pytest.approx(before, rel=1e-6)
    assert records[-1]["objective_after"] == pytest.approx(after, rel=1e-6)
    assert after < before


@pytest.mark.parametrize("space", ["uv", "u", "v"])
def test_conv1d_is_the_transposed_layer(space: str) -> None:
    base, models = family(5, 9)
    found, _ = dop_all(base, models, svd_proj_space=space)
    turned, _ = dop_all(
        base.mT.contiguous(), [model.mT.contiguous() for model in models], Role.CONV1D, svd_proj_space=space
    )
    assert distance(turned.mT, found, base) < 1e-6


@pytest.mark.parametrize(("shape", "rank"), [((10, 64), None), ((64, 10), None), ((30, 30), 2), ((12, 60), 1)])
@pytest.mark.parametrize("space", ["uv", "u", "v"])
def test_order_does_not_matter(shape: tuple[int, int], rank: int | None, space: str) -> None:
    """Wide, tall and of low rank, with a frozen model, a copy, and task vectors of very different size."""
    base = normal(*shape).float()
    models = []
    for number in range(5):
        tau = normal(*shape, seed=number + 1)
        if rank is not None:
            tau = normal(shape[0], rank, seed=number + 1) @ normal(rank, shape[1], seed=number + 9)
        models.append((base.double() + (0.3, 0.1, 0.03, 0.01, 0.1)[number] * tau).float())
    models += [base, models[1]]
    want, _ = dop_all(base, models, svd_proj_space=space)
    for order in ([6, 5, 4, 3, 2, 1, 0], [5, 0, 3, 6, 1, 4, 2]):
        found, _ = dop_all(base, [models[index] for index in order], svd_proj_space=space)
        assert distance(found, want, base) < 1e-5


@pytest.mark.parametrize("space", ["uv", "u", "v"])
def test_order_does_not_matter_where_the_spectrum_is_steep(space: str) -> None:
    """Singular values over six orders of magnitude, every one of which is kept."""
    base, models = normal(60, 240).float() * 0.03, []
    for seed in range(1, 6):
        left, right = (torch.linalg.qr(normal(side, 60, seed=seed))[0] for side in (60, 240))
        tau = (left * torch.logspace(0, -6, 60, dtype=torch.float64)) @ right.mT
        models.append((base.double() + 0.1 * seed * tau).float())
    size = sum(float((model - base).norm()) for model in models) / 5
    want, _ = dop_all(base, models, svd_proj_space=space, svd_epsilon=1.0)
    found, _ = dop_all(base, models[::-1], svd_proj_space=space, svd_epsilon=1.0)
    assert float((found - want).norm()) < 1e-5 * size


def test_two_models_are_the_last_history_at_even_weights() -> None:
    """With two models there is no history to forget."""
    base, models = family(7, 9, count=2, size=0.1)
    last, _ = fold(DOP_EXACT, DopParameters(alpha=0.5), base, models)
    assert distance(dop_all(base, models)[0], last, base) < 1e-5


def test_a_frozen_model_has_no_say() -> None:
    base, models = family(7, 5, size=0.1)
    want, _ = dop_all(base, models, svd_epsilon=1.0)
    found, records = dop_all(base, [models[0], base, *models[1:]], svd_epsilon=1.0)
    assert distance(found, want, base) < 1e-5
    assert records[1] == {"step": 2, "norm_incoming": 0.0}


def test_the_size_of_task_vectors_does_not_matter() -> None:
    """A hundred thousand times smaller ones, whose fourth powers are 1e-28: the same merge."""
    base = torch.zeros(6, 8)
    _, models = family(6, 8, size=0.1)
    found, _ = dop_all(base, [model * 1e-5 for model in models])
    assert distance(found * 1e5, dop_all(base, models)[0], base) < 1e-5


# WUDI


def test_wudi_by_hand() -> None:
    """Base 0, diag(2, 1) and diag(1, 3): entry squares weighed by 1/5 and 1/10, on one side.

    (0, 0): (4/5 * 2 + 1/10 * 1) / (4/5 + 1/10) = 1.7 / 0.9;  (1, 1): (1/5 * 1 + 9/10 * 3) / (1/5 + 9/10) = 2.9 / 1.1.
    """
    models = [torch.diag(torch.tensor(entries)) for entries in ([2.0, 1.0], [1.0, 3.0])]
    found, _ = fold(WUDI[COLUMNS], WudiParameters(ridge=0), torch.zeros(2, 2), models)
    torch.testing.assert_close(found, torch.diag(torch.tensor([1.7 / 0.9, 2.9 / 1.1])))
    # The curvatures 0.9 and 1.1 have the mean 1: a ridge of 0.1 adds 0.1 times the mean task vector, diag(1.5, 2).
    found, _ = fold(WUDI[COLUMNS], WudiParameters(ridge=0.1), torch.zeros(2, 2), models)
    torch.testing.assert_close(found, torch.diag(torch.tensor([1.7 + 0.15, (2.9 + 0.2) / 1.2])))


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4)])
@pytest.mark.parametrize("role", [Role.LINEAR, Role.CONV1D])
@pytest.mark.parametrize("ridge", [0, 0.1, 1])
def test_wudi_solves_its_normal_equations(shape: tuple[int, int], role: Role, ridge: float) -> None:
    """X = (H + r M) (G + r)^+ with H = sum tau tau^T tau / |tau|^2, G = sum tau^T tau / |tau|^2 and r = ridge tr G / n.

    What it records is its objective without the ridge.
    """
    base, models = family(*shape, count=3, size=0.1)
    taus = [model.double() - base.double() for model in models]
    if role is Role.CONV1D:
        taus = [tau.mT for tau in taus]
    weights = [1 / tau.square().sum() for tau in taus]
    grams = sum(weight * tau.mT @ tau for weight, tau in zip(weights, taus, strict=True))
    cubes = sum(weight * tau @ tau.mT @ tau for weight, tau in zip(weights, taus, strict=True))
    held = ridge * 3 / len(grams)  # each task's Gram matrix has a trace of 1
    firm = grams + held * torch.eye(len(grams), dtype=torch.float64)
    want = (cubes + held * sum(taus) / 3) @ torch.linalg.pinv(firm, rtol=1e-10, hermitian=True)

    def loss(point: Tensor) -> float:
        pairs = zip(weights, taus, strict=True)
        return float(sum(weight * ((point - tau) @ tau.mT).square().sum() for weight, tau in pairs))

    rule = WUDI[COLUMNS.turned() if role is Role.CONV1D else COLUMNS]
    found, records = fold(rule, WudiParameters(ridge=ridge), base, models, role)
    oriented = want.mT if role is Role.CONV1D else want
    assert distance(found, base.double() + oriented, base) < 1e-5
    assert records[-1]["objective_before"] == pytest.approx(loss(sum(taus) / 3), rel=1e-6)
    assert records[-1]["objective_after"] == pytest.approx(loss(want), rel=1e-6, abs=1e-12)
    assert "rank_incoming" not in records[0]


def test_wudi_weighs_tasks_by_direction_not_by_size() -> None:
    """Two tasks on one input, one ten times as large: each counts by its share of energy, so they meet midway."""
    models = [torch.tensor([[1.0, 0.0]]), torch.tensor([[10.0, 0.0]])]
    found, _ = fold(WUDI[COLUMNS], WudiParameters(ridge=0), torch.zeros(1, 2), models)
    torch.testing.assert_close(found, torch.tensor([[5.5, 0.0]]))
    found, _ = dop_all(torch.zeros(1, 2), models, svd_proj_space="v")
    torch.testing.assert_close(found, torch.tensor([[1001 / 101, 0.0]]))


# The sums


def test_the_sums_do_not_grow_and_say_how_large_they_are() -> None:
    for count in (1, 5):
        sums = TaskSums.empty(torch.zeros(4, 7), BOTH)
        for seed in range(count):
            sums.add(normal(4, 7, seed=seed), 1.0, 0.99, "at-least")
        found = {name: tuple(tensor.shape) for name, tensor in sums.pack().items()}
        assert found == {"left": (4, 4), "right": (7, 7), "rhs": (4, 7), "total": (4, 7), "constant": (1,)}
        assert found == {name: shape for name, (_, shape) in DOP_ALL[BOTH].state((4, 7)).items()}


@pytest.mark.parametrize("shape", [(4, 7), (7, 4)])
def test_whole_tasks_are_tasks_with_every_triplet(shape: tuple[int, int]) -> None:
    one, other = TaskSums.empty(torch.zeros(shape), BOTH), TaskSums.empty(torch.zeros(shape), BOTH)
    for seed in range(3):
        assert one.add(normal(*shape, seed=seed), 0.5, 1.0, "at-least") == 4
        other.add_whole(normal(*shape, seed=seed), 0.5)
    for name, tensor in one.pack().items():
        torch.testing.assert_close(tensor, other.pack()[name], rtol=1e-12, atol=0)
