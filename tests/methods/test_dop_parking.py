"""DOP's closed form with a park: what is away is not looked at, everything is back in the end, and no bit changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from methods.folding import family, fold
from torch import Tensor

from dopkit.linalg.parking import Park
from dopkit.methods import DOP_EXACT
from dopkit.methods.parameters import DopParameters
from dopkit.roles import Role

SHAPES = {
    "square": (24, 24),
    "3:4": (18, 24),
    "1:2": (12, 24),
    "tall": (40, 25),
    "wide": (9, 31),
    "wide, tall": (40, 8),
}
CASES: dict[str, dict[str, Any]] = {
    "all kept": {"svd_epsilon": 1.0},
    "some left out": {"svd_epsilon": 0.99, "rank_rule": "below"},
    "few kept": {"svd_epsilon": 0.4},
    "u": {"svd_proj_space": "u"},
    "v": {"svd_proj_space": "v", "svd_epsilon": 0.9},
    "first alone": {"alpha": 1.0},
    "last alone": {"alpha": 0.0, "svd_epsilon": 0.9},
}


class Spoiling(Park):
    """What is away is NaN until it is asked back."""

    def __init__(self) -> None:
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}
        self.most = 0

    def away(self, *tensors: Tensor | None) -> None:
        for tensor in tensors:
            if tensor is not None and self._key(tensor) not in self.kept:
                self.kept[self._key(tensor)] = tensor, tensor.clone()
                tensor.fill_(torch.nan)
        self.most = max(self.most, len(self.kept))

    def here(self, *tensors: Tensor | None) -> None:
        for tensor in tensors:
            if tensor is not None and self._key(tensor) in self.kept:
                before, kept = self.kept.pop(self._key(tensor))
                before.copy_(kept)

    def forget(self) -> None:
        self.kept.clear()

    @staticmethod
    def _key(tensor: Tensor) -> int:
        return int(tensor.untyped_storage()._cdata)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_bits(shape: str, case: str) -> None:
    base, models = family(*SHAPES[shape])
    parameters = DopParameters(**CASES[case])
    park = Spoiling()
    for role in (Role.LINEAR, Role.CONV1D):
        usual = fold(DOP_EXACT, parameters, base, models, role)
        parked = fold(DOP_EXACT, parameters, base, models, role, park=park)
        assert torch.equal(usual[0], parked[0])
        assert usual[1] == parked[1]
        assert not park.kept
    assert park.most >= 4


@pytest.mark.parametrize("task", ["two equal models", "a frozen layer"])
def test_where_there_is_little_to_solve(task: str) -> None:
    base, models = family(12, 20, count=2)
    models = [models[0], models[0]] if task == "two equal models" else [models[0], base]
    park = Spoiling()
    usual = fold(DOP_EXACT, DopParameters(), base, models)
    parked = fold(DOP_EXACT, DopParameters(), base, models, park=park)
    assert torch.equal(usual[0], parked[0]) and usual[1] == parked[1]
    assert park.most >= 3 and not park.kept
