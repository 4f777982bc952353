"""Trimming by hand, and what chance leaves of a task vector on average."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from methods.folding import distance, family, fold

from dopkit import methods
from dopkit.methods import trimming
from dopkit.methods.fold import Context
from dopkit.roles import Role

TAU = [1.0, -9, 2, 8, -3, 7, 4, -6, 5, 0]


def merged(name: str, tau: torch.Tensor, seed: int = 0, role: Role = Role.LINEAR, **given: Any) -> torch.Tensor:
    """Of one model whose task vector this is, from a base of zeros."""
    method = methods.find(name)
    parameters = method.parameters.model_validate(given)
    rule = method.rule_for(parameters, "w", role, tuple(tau.shape))
    return fold(rule, parameters, torch.zeros_like(tau), [tau], role, seed=seed, tensor="w")[0]


@pytest.mark.parametrize(
    ("density", "gamma", "kept"),
    [
        (0.5, 0.2, {7, 6, 5, 4, 3}),  # without 9 and 8, five of the rest
        (0.5, 0.0, {9, 8, 7, 6, 5}),
        (0.95, 0.2, {9, 8, 7, 6, 5, 4, 3, 2, 1} - {9} | {0}),  # nine stay, so that only one can go
        (0.01, 0.3, {6}),  # one at least
        (1.0, 0.3, set(range(10))),  # nothing is trimmed
    ],
)
def test_breadcrumbs_by_hand(density: float, gamma: float, kept: set[int]) -> None:
    found = merged("breadcrumbs", torch.tensor(TAU), density=density, gamma=gamma)
    assert found.tolist() == [entry if abs(entry) in kept else 0 for entry in TAU]


def test_breadcrumbs_treat_equals_alike() -> None:
    """Of (3, 3, 2, 2, 1) the largest goes: all of its size stay with it when one of them is to."""
    tau = torch.tensor([3.0, -3, 2, -2, 1])
    assert merged("breadcrumbs", tau, density=0.4, gamma=0.2).tolist() == [3, -3, 2, -2, 0]
    assert merged("breadcrumbs", tau, density=0.4, gamma=0.4).tolist() == [0, 0, 2, -2, 0]


def test_breadcrumbs_rescale() -> None:
    found = merged("breadcrumbs", torch.tensor(TAU), density=0.5, gamma=0.2, rescale=True)
    assert float(found.abs().sum()) == pytest.approx(45)
    assert float(found[5]) == pytest.approx(7 * 45 / 25)


@pytest.mark.parametrize("name", ["dare_linear", "della_linear"])
def test_the_mean_over_seeds_is_the_task_vector(name: str) -> None:
    """Rescaled entries keep their expectation, each its own; without, it shrinks to the chance."""
    tau = torch.tensor([[1.0, -2, 3, 4, -5], [0.1, 0.5, 0.2, 0.4, 0.3]])
    runs = [merged(name, tau.clone(), seed=seed, density=0.6) for seed in range(600)]
    mean, rate = torch.stack(runs).mean(0), (torch.stack(runs) != 0).float().mean(0)
    # The deviation of the mean of 600 runs is sqrt((1 / p - 1) / 600), 0.045 at p = 0.45.
    assert torch.allclose(mean / tau, torch.ones_like(tau), atol=0.18)
    chances = torch.full_like(tau, 0.6)
    if name == "della_linear":
        chances = 0.45 + 0.3 * torch.tensor([[0.0, 1, 2, 3, 4], [0, 4, 1, 3, 2]]) / 4
    assert torch.allclose(rate, chances, atol=0.09)
    plain = [merged(name, tau.clone(), seed=seed, density=0.6, rescale=False) for seed in range(10)]
    assert all(torch.equal(one[one != 0], tau[one != 0]) for one in plain)


def test_della_ranks_a_vector_as_one_row_and_a_kernel_by_its_first_axis() -> None:
    for shape, rows in (((60,), 1), ((4, 15), 4), ((4, 5, 3), 4)):
        entries = torch.arange(60.0).view(shape) + 1
        kept = trimming.drop_by_rank(entries.clone(), torch.full(shape, 0.5), 0.5, 0.2, False)
        # A draw of one half keeps the upper half of every row.
        assert (kept.view(rows, -1) != 0).sum(1).tolist() == [60 // rows // 2] * rows


def test_a_single_entry_has_the_mean_chance() -> None:
    tau = torch.tensor(2.0)
    assert {float(merged("della_linear", tau.clone(), seed=seed, density=0.5)) for seed in range(20)} == {0, 4}


def test_the_same_draws_for_the_same_model_only() -> None:
    """Two models with one name would drop the same entries; a seed of its own draws other ones."""
    base, models = family(8, 9, count=2)
    method = methods.find("dare_linear")
    given = method.parameters.model_validate({"density": 0.5})
    rule = method.rule_for(given, "w", Role.LINEAR, (8, 9))

    def dropped(**known: Any) -> torch.Tensor:
        return fold(rule, given, base, models[:1], **known)[0] == base

    assert torch.equal(dropped(names=["a"]), dropped(names=["a"]))
    assert not torch.equal(dropped(names=["a"]), dropped(names=["b"]))
    assert not torch.equal(dropped(names=["a"]), dropped(names=["a"], seed=1))
    assert not torch.equal(dropped(names=["a"]), dropped(names=["a"], tensor="v"))


@pytest.mark.parametrize(
    ("name", "plain"),
    [("dare_linear", "task_arithmetic"), ("della_linear", "task_arithmetic"), ("breadcrumbs", "task_arithmetic"),
     ("dare_ties", "ties"), ("della", "ties"), ("breadcrumbs_ties", "ties")],
)  # fmt: skip
@pytest.mark.parametrize("normalize", [True, False])
def test_at_density_1_nothing_is_trimmed(name: str, plain: str, normalize: bool) -> None:
    base, models = family(6, 7, count=3)
    results = []
    for each in (name, plain):
        method = methods.find(each)
        parameters = [method.parameters.model_validate({"weight": weight, "lambda": 0.8, "normalize": normalize})
                      for weight in (0.5, 0.3, -0.4)]  # fmt: skip
        rule = method.rule_for(parameters[0], "w", Role.LINEAR, (6, 7))
        results.append(fold(rule, parameters, base, models)[0])
    assert torch.equal(*results)


@pytest.mark.parametrize(
    "name", ["ties", "dare_linear", "dare_ties", "della_linear", "della", "breadcrumbs", "breadcrumbs_ties"]
)
def test_a_model_of_density_0_has_no_say(name: str) -> None:
    """As where a gradient over the layers begins with nothing."""
    base, models = family(6, 7, count=2)
    method = methods.find(name)
    given = [method.parameters.model_validate({"density": density}) for density in (0.0, 1.0)]
    rule = method.rule_for(given[0], "w", Role.LINEAR, (6, 7))
    both, alone = fold(rule, given, base, models)[0], fold(rule, given[1:], base, models[1:])[0]
    assert torch.allclose(both, alone, atol=1e-6)
    assert torch.equal(fold(rule, given[0], base, models[:1])[0], base)


def test_a_mean_of_task_vectors_by_hand() -> None:
    """Weights 1 and 3 on 4 and 8: (4 + 24) / 4 = 7, times lambda; a merged one goes on as the mean that it is."""
    method = methods.find("task_arithmetic")
    given = [method.parameters.model_validate({"weight": weight, "lambda": 2.0, "normalize": True})
             for weight in (1.0, 3.0, 4.0)]  # fmt: skip
    rule = method.rule_for(given[0], "w", Role.LINEAR, (1,))
    base = torch.tensor([10.0])
    models = [torch.tensor([value]) for value in (14.0, 18.0, 11.0)]
    assert fold(rule, given[:2], base, models[:2])[0].tolist() == [24]
    assert fold(rule, given, base, models)[0].tolist() == [18]  # 10 + 2 (4 + 24 + 4) / 8


def test_what_was_merged_goes_on_as_the_mean_that_it_is() -> None:
    """From merged weights alone, within rounding: the rules that say they can."""
    base, models = family(6, 7, count=4)
    for name, given in (("linear", {"weight": 0.7}), ("task_arithmetic", {"normalize": True, "weight": 0.7}),
                        ("dare_linear", {"density": 0.5, "normalize": True}),
                        ("breadcrumbs", {"density": 0.5, "normalize": True})):  # fmt: skip
        method = methods.find(name)
        parameters = method.parameters.model_validate(given)
        rule = method.rule_for(parameters, "w", Role.LINEAR, (6, 7))
        assert rule.resumes
        half, whole = (fold(rule, parameters, base, models[:count])[0] for count in (2, 4))

        def context(step: int) -> Context:
            return Context(parameters, Role.LINEAR, step, model=str(step))  # noqa: B023

        folding = rule.load()
        state = folding.unpack(base, {"merged": half}, context(2))
        for step in (3, 4):
            state = folding.step(state, models[step - 1].clone(), context(step))
        assert distance(folding.finish(state, context(4)), whole, base) < 2e-5
