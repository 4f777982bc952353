"""Calls made behind the caller's back, in order, in a thread of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any


class WriteBehind:
    """Runs calls in order on a thread of their own, with at most ``budget`` bytes handed over and not yet done.

    One call may always wait, whatever its size; with a budget of 0 a call is done when ``put`` returns.
    The first call that raises stops the rest; its exception comes out of the next ``put`` or of ``close``.
    """

    def __init__(self, budget: int, name: str = "dopkit-write") -> None:
        self._budget = budget
        self._pending = self._calls = 0
        self._change = threading.Condition()
        self._failed: BaseException | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)

    def put(self, nbytes: int, call: Callable[[], Any]) -> None:
        with self._change:
            self._change.wait_for(lambda: self._failed or not self._pending or self._pending + nbytes <= self._budget)
            if self._failed:
                raise self._failed
            self._pending += nbytes
            self._calls += 1
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
            del call  # and what it holds, before somebody hands over more
            with self._change:
                self._pending -= nbytes
                self._calls -= 1
                self._change.notify_all()

    def drain(self) -> None:
        """Wait for everything handed over so far; raise what went wrong."""
        with self._change:
            self._change.wait_for(lambda: not self._calls)
        if self._failed:
            raise self._failed

    def close(self) -> None:
        """Wait for everything handed over; raise what went wrong."""
        self._thread.shutdown(wait=True)
        if self._failed:
            raise self._failed
