"""Memory of every fold, counted in bytes of living tensors: it does not grow with the number of models."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
from methods.test_fold_laws import CASES, Case

ROWS, COLUMNS = 24, 16


@pytest.fixture(scope="module", autouse=True)
def others_are_left_out() -> Iterator[None]:
    """What lived before is not looked through again and again: libraries hold a million objects."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def living_bytes() -> int:
    """The storage of every tensor that anything made here holds."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) is torch.Tensor and thing.layout is torch.strided and thing.device.type == "cpu":
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


@pytest.mark.parametrize("name", CASES)
def test_twelve_models_take_what_four_take(name: str) -> None:
    case = Case(*CASES[name])
    fold = case.rule((ROWS, COLUMNS)).load()
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(ROWS, COLUMNS, generator=generator)

    def model() -> torch.Tensor:
        return base + 0.1 * torch.randn(ROWS, COLUMNS, generator=generator)

    before, held = living_bytes(), {}
    first = model()
    state = fold.start(base, first, case.context(1, first))
    del first
    for step in range(2, 13):
        incoming = model()
        state = fold.step(state, incoming, case.context(step, incoming))
        del incoming
        if step in (4, 12):
            held[step] = living_bytes() - before
    assert held[12] == held[4] > 0, held
    assert held[12] <= 8 * 8 * max(ROWS, COLUMNS) ** 2
