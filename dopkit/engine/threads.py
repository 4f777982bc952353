"""How many threads torch computes with in the thread that asks: a part of what a result is, down to its last bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def compute_with(threads: int) -> None:
    """From now on so many in this thread, whatever is set in others.

    With the first thing that it computes, torch gives a thread the number that was set last in any of them. To be asked
    for the number is such a thing, so that it is over before ours is set.
    """
    torch.get_num_threads()
    torch.set_num_threads(threads)


@contextmanager
def computing_with(threads: int | None) -> Iterator[None]:
    """Within, so many; None leaves it as it is."""
    before = torch.get_num_threads()
    if threads is not None:
        compute_with(threads)
    try:
        yield
    finally:
        if threads is not None:
            torch.set_num_threads(before)
