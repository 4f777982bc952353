"""Reading ahead and writing behind: two small threads that keep the disk busy while tensors are merged.

Both are bounded in bytes. Order is kept, so nothing here can change a result.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from dopkit.engine.threads import compute_with
from dopkit.writer.behind import WriteBehind

__all__ = ["ReadAhead", "Request", "WriteBehind"]


@dataclass(frozen=True)
class Request:
    """One read to be made: how large it is and how to make it."""

    nbytes: int
    read: Callable[[], torch.Tensor]


class ReadAhead:
    """Makes reads in the order of the requests, with at most ``budget`` bytes read beyond those asked for.

    One read is always ahead, whatever its size; with a budget of 0 none is.
    Whoever merges takes its share of them with ``share``; several may be in hand, each in a thread of its own. Computes
    with ``threads`` threads where a read is more than that: what it gives must not depend on who asked last.
    """

    def __init__(self, requests: Iterable[Request], budget: int, threads: int | None = None) -> None:
        self._requests = iter(requests)
        self._budget = budget
        self._made: dict[int, tuple[int, Future[torch.Tensor]]] = {}  # and not asked for yet, by number
        self._ahead = self._number = self._given = 0
        self._change = threading.Condition()
        self._closed = False
        self._following: Request | None = next(self._requests, None)
        prepare = (lambda: compute_with(threads)) if threads else None
        self._thread = ThreadPoolExecutor(1, "dopkit-read", initializer=prepare)

    def allow(self, budget: int) -> None:
        """From now on at most so many bytes."""
        with self._change:
            self._budget = budget
            self._fill()
            self._change.notify_all()

    def __next__(self) -> torch.Tensor:
        return self._take(self._reserve(1))

    def share(self, count: int) -> Callable[[], torch.Tensor]:
        """Gives the next so many reads one after another, whatever is asked for elsewhere in the meantime."""
        numbers = iter(range(first := self._reserve(count), first + count))
        return lambda: self._take(next(numbers))

    def _reserve(self, count: int) -> int:
        self._given += count
        return self._given - count

    def _take(self, number: int) -> torch.Tensor:
        with self._change:
            self._fill()
            self._change.wait_for(lambda: self._closed or number in self._made)
            if self._closed:
                raise CancelledError
            nbytes, future = self._made.pop(number)
            self._ahead -= nbytes
            if self._budget:
                self._fill()
            self._change.notify_all()
        return future.result()

    def _fill(self) -> None:
        while self._following is not None and (not self._made or self._ahead + self._following.nbytes <= self._budget):
            self._made[self._number] = self._following.nbytes, self._thread.submit(self._following.read)
            self._ahead += self._following.nbytes
            self._number += 1
            self._following = next(self._requests, None)

    def close(self) -> None:
        """Read no more; who waits for a read gets CancelledError."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        self._thread.shutdown(wait=True, cancel_futures=True)
