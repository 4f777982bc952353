"""Reading ahead and writing behind: two small threads that keep the disk busy while a tensor is merged.

Both are bounded in bytes. Order is kept, so nothing here can change a result.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Request:
    """One read to be made: how large it is and how to make it."""

    nbytes: int
    read: Callable[[], torch.Tensor]


class ReadAhead:
    """Yields what the requests read, in order, with at most ``budget`` bytes read beyond the one asked for.

    One request is always ahead, whatever its size; with a budget of 0 none is.
    """

    def __init__(self, requests: Iterable[Request], budget: int) -> None:
        self._requests = iter(requests)
        self._budget = budget
        self._waiting: deque[tuple[int, Future[torch.Tensor]]] = deque()
        self._ahead = 0
        self._following: Request | None = next(self._requests, None)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="dopkit-read")

    def __next__(self) -> torch.Tensor:
        self._fill()
        nbytes, future = self._waiting.popleft()
        self._ahead -= nbytes
        if self._budget:
            self._fill()
        return future.result()

    def _fill(self) -> None:
        while self._following is not None and (
            not self._waiting or self._ahead + self._following.nbytes <= self._budget
        ):
            self._waiting.append((self._following.nbytes, self._thread.submit(self._following.read)))
            self._ahead += self._following.nbytes
            self._following = next(self._requests, None)

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)


class WriteBehind:
    """Runs calls in order on a thread of their own, with at most ``budget`` bytes handed over and not yet done.

    One call may always wait, whatever its size; with a budget of 0 a call is done when ``put`` returns.
    The first call that raises stops the rest; its exception comes out of the next ``put`` or of ``close``.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._pending = 0
        self._change = threading.Condition()
        self._failed: BaseException | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="dopkit-write")

    def put(self, nbytes: int, call: Callable[[], Any]) -> None:
        with self._change:
            self._change.wait_for(lambda: self._failed or not self._pending or self._pending + nbytes <= self._budget)
            if self._failed:
                raise self._failed
            self._pending += nbytes
        done = self._thread.submit(self._run, nbytes, call)
        if not self._budget:
            done.result()

    def _run(self, nbytes: int, call: Callable[[], Any]) -> None:
        try:
            if self._failed is None:
                call()
        except BaseException as error:
            self._failed = error
        finally:
            with self._change:
                self._pending -= nbytes
                self._change.notify_all()

    def close(self) -> None:
        """Wait for everything handed over; raise what went wrong."""
        self._thread.shutdown(wait=True)
        if self._failed:
            raise self._failed
