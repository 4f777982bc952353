"""Null-space merging against its formula, and by hand."""

from __future__ import annotations

import pytest
import torch
from methods.folding import distance, family, fold

from dopkit.methods.continual_parameters import NullspaceParameters
from dopkit.methods.rules import NULLSPACE
from dopkit.roles import Role


def test_by_hand() -> None:
    """Merged diag(3, 1): the first input holds 3/4 of the sum, so at 0.3 the incoming first column is closed."""
    base = torch.zeros(2, 2)
    models = [torch.diag(torch.tensor([3.0, 1.0])), torch.tensor([[5.0, 6.0], [7.0, 8.0]])]
    found, records = fold(NULLSPACE, NullspaceParameters(), base, models)
    torch.testing.assert_close(found, torch.tensor([[3.0, 6.0], [0.0, 9.0]]))
    (record,) = records
    assert record == pytest.approx({"step": 2, "rank_merged": 1, "norm_incoming": 174**0.5, "norm_added": 10.0})
    turned, _ = fold(NULLSPACE, NullspaceParameters(), base, models, Role.CONV1D)  # (in, out): the first row
    torch.testing.assert_close(turned, torch.tensor([[3.0, 0.0], [7.0, 9.0]]))


@pytest.mark.parametrize("rule", ["at-least", "below"])
@pytest.mark.parametrize("shape", [(8, 8), (6, 14), (14, 6)])
@pytest.mark.parametrize("epsilon", [0.2, 0.5, 0.9, 1.0])
def test_the_formula(shape: tuple[int, int], epsilon: float, rule: str) -> None:
    """Against full singular value decompositions."""
    base, models = family(*shape, count=4, size=0.1)
    merged = models[0].double()
    for model in models[1:]:
        _, s, vh = torch.linalg.svd(merged - base.double(), full_matrices=False)
        rank = int((s.cumsum(0) / s.sum() < epsilon - 1e-14).sum()) + (rule == "at-least")
        tau = model.double() - base.double()
        merged = merged + tau - tau @ vh[:rank].mT @ vh[:rank]
    found, _ = fold(NULLSPACE, NullspaceParameters(svd_epsilon=epsilon, rank_rule=rule), base, models)
    assert distance(found, merged, base) < 1e-5


@pytest.mark.parametrize("shape", [(8, 12), (12, 8), (8, 8)])
def test_the_merged_model_answers_as_before_on_the_inputs_it_uses(shape: tuple[int, int]) -> None:
    """At full energy nothing changes there; tall and square matrices use every input, so nothing is added at all."""
    base, (one, two, _) = family(*shape, size=0.1)
    found, records = fold(NULLSPACE, NullspaceParameters(svd_epsilon=1.0), base, [one, two])
    used = (one - base).double()
    assert float(((found - one).double() @ used.mT).norm()) < 1e-5 * float(used.norm() ** 2)
    assert (records[0]["norm_added"] < 1e-5) == (shape != (8, 12))


def test_conv1d_is_the_transposed_layer() -> None:
    base, models = family(5, 9)
    found, _ = fold(NULLSPACE, NullspaceParameters(), base, models)
    turned, _ = fold(
        NULLSPACE, NullspaceParameters(), base.mT.contiguous(), [model.mT.contiguous() for model in models], Role.CONV1D
    )
    assert distance(turned.mT, found, base) < 1e-6
