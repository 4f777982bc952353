"""Laws that hold for every merge that sees all models at once, on one tensor. The docstring is the law.

That inputs are left as they are, and results new tensors of the base's shape and dtype, is checked by ``join``.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from methods.folding import distance, every_rule, family, join

from dopkit import methods
from dopkit.errors import MergeError
from dopkit.methods import Cut, Rule
from dopkit.methods.parameters import Parameters
from dopkit.roles import Role

# Every joint rule of every method: method, parameters.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "passthrough": ("passthrough", {}),
    "passthrough-scale": ("passthrough", {"scale": 0.5}),
    "slerp": ("slerp", {"t": 0.3}),
    "nuslerp": ("nuslerp", {"weight": 0.7}),
    "nuslerp-rows": ("nuslerp", {"weight": 0.7, "nuslerp_flatten": False}),
    "nuslerp-columns": ("nuslerp", {"weight": 0.7, "nuslerp_flatten": False, "nuslerp_row_wise": True}),
    "karcher": ("karcher", {}),
    "nearswap": ("nearswap", {"t": 0.01}),
    "arcee_fusion": ("arcee_fusion", {}),
    "sce": ("sce", {}),
    "sce-topk": ("sce", {"select_topk": 0.4}),
    "ramplus_tl": ("ramplus_tl", {"epsilon": 0.01}),
    "tsv": ("tsv", {}),
    "iso_cts": ("iso_cts", {"common_share": 0.5}),
    "iso_cts-common": ("iso_cts", {"common_share": 1.0}),
}
SHAPES = [(7, 5), (5, 7), (4, 13)]


class Case:
    def __init__(self, method: str, parameters: dict[str, Any]) -> None:
        self.method = methods.find(method)
        self.parameters: Parameters = self.method.parameters.model_validate(parameters)

    @property
    def count(self) -> int:
        """How many models it takes, three where it takes any number."""
        return min(3, self.method.most_models or 3)

    def rule(self, shape: tuple[int, ...] = (7, 5)) -> Rule:
        return self.method.rule_for(self.parameters, "x.weight", Role.LINEAR, shape)

    def merged(self, base: torch.Tensor, models: list[torch.Tensor]) -> torch.Tensor:
        return join(self.rule(tuple(base.shape)), self.parameters, base, models[: self.count])[0]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(*CASES[request.param])


def test_no_rule_is_left_out() -> None:
    """Every joint rule of every built-in method is among the cases."""
    assert {rule.fold for rule in every_rule() if rule.joint} == {Case(*case).rule().fold for case in CASES.values()}


@pytest.mark.parametrize("name", [name for name in CASES if name != "passthrough-scale"])
def test_all_frozen_is_the_base(name: str) -> None:
    """Models that never moved give the base, bit for bit."""
    for shape in SHAPES:
        base, _ = family(*shape)
        assert torch.equal(Case(*CASES[name]).merged(base, [base.clone() for _ in range(3)]), base)


def test_frozen_layers_and_equal_models_are_finite(case: Case) -> None:
    """Models equal to the base, to each other, of rank 1, or opposite, in any place."""
    base, (one, two, _) = family(6, 8)
    thin, zero = base + 0.01 * torch.outer(base[:, 0], base[0]), torch.zeros_like(base)
    for models in ([base, one, two], [one, base, two], [one, one, two], [one, two, two], [thin, base, base],
                   [thin, thin, thin], [one, thin, thin], [one, -one, one], [zero, one, two], [zero, zero, zero],
                   [one, 2 * base - one, base]):  # fmt: skip
        assert bool(torch.isfinite(case.merged(base, models)).all())
        assert bool(torch.isfinite(case.merged(zero, models)).all())


def test_an_empty_tensor_passes(case: Case) -> None:
    for shape in ((0, 4), (4, 0)):
        base = torch.zeros(shape)
        assert case.merged(base, [base.clone() for _ in range(3)]).shape == shape


def test_float64_models_keep_their_precision(case: Case) -> None:
    """The same merge in float64 is the same merge, and not by way of float32."""
    base, models = family(7, 5, dtype=torch.float64)
    exact = case.merged(base, models)
    base32, models32 = base.float(), [model.float() for model in models]
    again = case.merged(base32.double(), [model.double() for model in models32])
    assert exact.dtype == torch.float64
    assert distance(case.merged(base32, models32), again, base) < 2e-5
    assert not torch.equal(exact, exact.float().double())


def test_vectors_and_numbers_are_merged_as_well(case: Case) -> None:
    for shape in ((), (1,), (9,), (3, 4, 5)):
        base, models = family(*shape)
        if case.rule(shape).joint and case.rule(shape).cut is not Cut.MATRICES:
            assert bool(torch.isfinite(case.merged(base, models)).all())


@pytest.mark.parametrize("name", [name for name in CASES if Case(*CASES[name]).rule().cut is Cut.BLOCKS])
@pytest.mark.parametrize("cut", [1, 3, 17, 101])
def test_blocks_give_the_bytes_of_the_whole(name: str, cut: int) -> None:
    """What may be cut into runs of rows gives the same bits wherever it is cut."""
    case = Case(*CASES[name])
    base, models = family(331, 3)
    parts = zip(base.split(cut), *(model.split(cut) for model in models), strict=True)
    assert torch.equal(torch.cat([case.merged(part, list(rest)) for part, *rest in parts]), case.merged(base, models))


@pytest.mark.parametrize("name", [name for name in CASES if Case(*CASES[name]).count > 1])
def test_order_does_not_matter(name: str) -> None:
    """The same models in any order: the same result within 1e-5 of the task vector, frozen and equal ones included."""
    case = Case(*CASES[name])
    base, (one, two, three) = family(12, 40, size=0.1)
    groups = [[one, two]] if case.count == 2 else [[one, two, three], [one, two, two], [base, one, two]]
    for models in groups:
        want = case.merged(base, models)
        for order in ([1, 0, 2], [2, 1, 0], [1, 2, 0]):
            again = case.merged(base, [models[index] for index in order if index < len(models)])
            assert distance(again, want, base) < 1e-5


def test_a_value_that_is_not_finite_is_told(case: Case) -> None:
    """NaN and infinity raise MergeError, or show in the result: they never vanish."""
    for bad in (float("nan"), float("inf"), -float("inf")):
        for place in range(case.count):
            base, models = family(5, 6)
            models[place][2, 3] = bad
            try:
                assert not bool(torch.isfinite(case.merged(base, models)).all())
            except MergeError as error:
                assert "not finite" in str(error)
