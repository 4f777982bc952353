"""MagMax by hand and against its formula."""

from __future__ import annotations

import pytest
import torch
from methods.folding import distance, family, fold

from dopkit.methods.continual_parameters import MagMaxParameters
from dopkit.methods.rules import MAGMAX

Given = MagMaxParameters.model_validate


@pytest.mark.parametrize("factor", [0.5, 1.0])
def test_by_hand(factor: float) -> None:
    """Base 1; task vectors (2, 1, -3, 0), (1, -5, 3, -1), (-1, 4, 0, 1): the later of equal magnitudes wins."""
    taus = torch.tensor([[2.0, 1, -3, 0], [1, -5, 3, -1], [-1, 4, 0, 1]])
    want = [1 + factor * entry for entry in (2, -5, 3, 1)]
    found, _ = fold(MAGMAX, Given({"lambda": factor}), torch.ones(4), list(1 + taus))
    assert found.tolist() == want


@pytest.mark.parametrize("factor", [0.3, 0.5, 1.0, 1.7])
def test_the_published_maximum(factor: float) -> None:
    base, models = family(20, 30, count=6)
    taus = torch.stack([model.double() - base.double() for model in models])
    largest = taus.gather(0, taus.abs().argmax(0, keepdim=True))[0]
    found, _ = fold(MAGMAX, Given({"lambda": factor}), base, models)
    # Where two magnitudes are equal but for rounding the other sign may win.
    close = taus.abs().sort(0).values
    clear = close[-1] - close[-2] > 1e-6
    assert float(clear.double().mean()) > 0.99
    assert distance(found[clear], (base.double() + factor * largest)[clear], base[clear]) < 1e-5


def test_the_default_is_the_published_half() -> None:
    assert MagMaxParameters().lambda_ == 0.5
