"""How many threads a thread computes with: its own affair."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from dopkit.engine.threads import compute_with, computing_with


@pytest.fixture(autouse=True)
def three() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_what_others_set_makes_no_difference() -> None:
    """Also before the thread has computed anything."""
    is_set, go_on = threading.Event(), threading.Event()
    found: list[int] = []

    def work() -> None:
        compute_with(1)
        is_set.set()
        go_on.wait()
        torch.ones(1 << 18).sum()
        found.append(torch.get_num_threads())

    thread = threading.Thread(target=work)
    thread.start()
    is_set.wait()
    torch.set_num_threads(3)
    go_on.set()
    thread.join()
    assert found == [1]


def test_for_a_while() -> None:
    with computing_with(2):
        assert torch.get_num_threads() == 2
        with computing_with(None):
            assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 3
