"""Task arithmetic by hand and against its formula."""

from __future__ import annotations

import torch
from methods.folding import distance, family, fold

from dopkit.methods.continual_parameters import OpcmParameters
from dopkit.methods.delta_parameters import TaskArithmeticParameters
from dopkit.methods.rules import SUM, TASK_ARITHMETIC
from dopkit.roles import Role

Given = TaskArithmeticParameters.model_validate


def test_by_hand() -> None:
    """Base 1; task vectors (1, 2, 0, -4) and (3, -2, 0, 8); lambda 1/2, weights 1 and 1/4."""
    base = torch.ones(4)
    models = [torch.tensor([2.0, 3.0, 1.0, -3.0]), torch.tensor([4.0, -1.0, 1.0, 9.0])]
    parameters = [Given({"lambda": 0.5}), Given({"lambda": 0.5, "weight": 0.25})]
    found, records = fold(TASK_ARITHMETIC, parameters, base, models, Role.BIAS)
    assert found.tolist() == [1 + 0.5 + 0.375, 1 + 1 - 0.25, 1.0, 1 - 2 + 1]
    assert records == []


def test_the_published_sum() -> None:
    base, models = family(7, 9, count=5)
    want = base.double() + 0.3 * sum(model.double() - base.double() for model in models)
    found, _ = fold(TASK_ARITHMETIC, Given({"lambda": 0.3}), base, models)
    assert distance(found, want, base) < 1e-5


def test_a_negative_weight_takes_a_task_away() -> None:
    base, (one, two, _) = family(7, 9)
    parameters = [Given({}), Given({}), Given({"weight": -1.0})]
    found, _ = fold(TASK_ARITHMETIC, parameters, base, [one, two, one])
    assert distance(found, two, base) < 1e-5


def test_a_sum_without_factors() -> None:
    """What OPCM does with vectors is task arithmetic with a factor of 1, bit for bit."""
    base, models = family(50, count=4)
    plain, _ = fold(SUM, OpcmParameters(), base, models)
    assert torch.equal(plain, fold(TASK_ARITHMETIC, Given({}), base, models)[0])
