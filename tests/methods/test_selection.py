"""Chosen entries by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from methods.folding import fold, join

from dopkit import methods
from dopkit.roles import Role


def merged(name: str, models: list[list[float]], base: list[float] | None = None, **given: Any) -> list[float]:
    method = methods.find(name)
    parameters = method.parameters.model_validate(given)
    start = torch.tensor(base or [0.0] * len(models[0]))
    rule = method.rule_for(parameters, "w", Role.LINEAR, tuple(start.shape))
    merge = join if rule.joint else fold
    return merge(rule, parameters, start, [torch.tensor(model) for model in models])[0].tolist()


def test_nearswap() -> None:
    """What is within t of the base is the model's; the rest moves by t."""
    assert merged("nearswap", [[1.1, 0.5, -4, 1]], [1.0, 1, 1, 1], t=0.25) == pytest.approx([1.1, 0.75, 0.75, 1])
    assert merged("nearswap", [[1.1, 0.5]], [1.0, 1], t=0) == [1, 1]


@pytest.mark.parametrize(
    ("last", "taken"), [(9.9, False), (10.1, True)]  # of 8 the ranks are 4 + 1.5 (6 - 2) = 10
)  # fmt: skip
def test_arcee_fusion(last: float, taken: bool) -> None:
    """A vector is one row, so that its divergence is a common factor: distances 1 ... 7 and one more."""
    model = [1.0, 2, 3, 4, 5, 6, 7, last]
    assert merged("arcee_fusion", [model]) == [0.0] * 7 + [pytest.approx(last) if taken else 0]


def test_arcee_fusion_prefers_rows_that_diverge() -> None:
    """The same distance in every entry of a row changes no softmax: however large, it does not matter.

    The divergences are 0, 0.44 and 1.39, so the importances are 4 zeros, 0.44 (1, 2, 3, 4), 1.39 (1, 2, 3, 30): the
    threshold is 0.88 + 1.5 * 1.76.
    """
    model = torch.tensor([[50.0, 50, 50, 50], [1, 2, 3, 4], [1, 2, 3, 30]])
    method = methods.find("arcee_fusion")
    rule = method.rule_for(method.parameters(), "w", Role.LINEAR, (3, 4))
    found = join(rule, method.parameters(), torch.zeros(3, 4), [model])[0]
    assert found.tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 3, 30]]


def test_sce_by_hand() -> None:
    """Task vectors (2, 1, -1) and (4, -3, -1): energies 6 and 26. Elected +, -, -; weights 6 and 26 of 32.

    Of the first (2 * 6 + 4 * 26) / 32, of the second -3 alone, of the third -1 from both.
    """
    assert merged("sce", [[2.0, 1, -1], [4, -3, -1]]) == pytest.approx([116 / 32, -3, -1])
    # Variances 1, 4, 0: a third of the entries is the second one; energies are then 1 and 9.
    assert merged("sce", [[2.0, 1, -1], [4, -3, -1]], select_topk=0.34) == pytest.approx([0, -3, 0])


def test_ram_by_hand() -> None:
    """Changed by both, by the first, by the second, by none."""
    models = [[4.0, 2, 0.05, 0], [2.0, 0.05, -3, 0.05]]
    assert merged("ram", models, epsilon=0.1) == [3, 2, -3, 0]
    assert merged("ram", models, epsilon=0) == pytest.approx([3, 1.025, -1.475, 0.05])


def test_ramplus_by_hand() -> None:
    """The first has two common entries and one of its own (rho 2), the second two and two (rho 1)."""
    models = [[4.0, 1, 2, 0, 0], [2.0, 1, 0, -3, 5]]
    found = merged("ramplus_tl", models, epsilon=0.1, r=0.5, alpha=1.5)
    assert found == pytest.approx([3, 1, 2 * 1.75, -3 * 1.5, 5 * 1.5])
    assert merged("ramplus_tl", models, epsilon=0.1, r=0) == merged("ram", models, epsilon=0.1)
