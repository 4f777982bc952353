"""Several pieces of work in hand at once, each in a thread of its own; what they give comes out in the work's order.

Knows how many bytes a piece takes and whether it wants every core; not what it does. Which pieces are in hand at the
same time has no part in a result: each computes with a number of threads that is its own affair.
"""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue
from typing import Generic, Protocol, TypeVar

import torch

from dopkit.engine.threads import compute_with

T = TypeVar("T")
R = TypeVar("R")
_HELD_BYTES = 16_000_000  # that a piece may have given before its turn comes
_LINES = 4  # pieces that wait for their turn, finished or not, for each thread
_PATIENCE = 60.0  # seconds until a thread that does not hear is left behind


class Work(Protocol[T]):
    """One piece."""

    nbytes: int  # of memory while it is in hand
    alone: bool  # whether it is done with all cores, and nothing beside it

    def admitted(self) -> None:
        """Its time has come; called in the order of the work, in the thread that runs the crew."""

    def run(self, hand: Hand[T]) -> None:
        """Do it, and give what comes out to the hand."""


W = TypeVar("W", bound=Work)  # type: ignore[type-arg]


class Stopped(BaseException):
    """In a thread of the crew: somebody has failed, so nobody wants the rest."""


class Crew(Generic[T, W]):
    """``hands`` threads. The pieces in hand together take at most ``budget`` bytes, but one is always taken on.

    A piece computes with one thread, one that is done alone with ``cores``; None leaves that as it is.
    """

    def __init__(self, hands: int, budget: int, cores: int | None) -> None:
        self._hands, self._budget, self._cores = hands, budget, cores
        self._change = threading.Condition()
        self._line: deque[_Started[T, W]] = deque()
        self._begun: SimpleQueue[_Started[T, W] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def run(self, work: Iterable[W]) -> Iterator[tuple[W, T | None]]:
        """What the pieces give, piece after piece; None at the end of each.

        Raises what the first piece in this order has failed with; ``stop`` then, and ``join``.
        """
        following = iter(work)
        waiting = next(following, None)
        while self._line or waiting is not None:
            while waiting is not None and self._takes(waiting):
                self._begin(waiting)
                waiting = next(following, None)
            yield from self._next(waiting)

    def in_hand(self) -> list[W]:
        """The pieces that are not finished yet."""
        return [one.work for one in self._line if not one.finished]

    def _begin(self, work: W) -> None:
        work.admitted()
        started = _Started[T, W](work, self._change, self._cores and (self._cores if work.alone else 1))
        self._line.append(started)
        self._begun.put(started)
        if len(self._threads) < min(self._hands, len(self._line)):
            thread = threading.Thread(target=self._work, name=f"dopkit-merge_{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _work(self) -> None:
        """What a thread does."""
        while (started := self._begun.get()) is not None:
            try:
                started.run()
            except Stopped:  # nobody asks any more
                return

    def _takes(self, work: W) -> bool:
        """Whether this piece may be taken in hand now."""
        busy = self.in_hand()
        if len(busy) >= self._hands or len(self._line) >= _LINES * self._hands:
            return False
        if busy and (work.alone or busy[0].alone):
            return False
        held = sum(one.hand.held for one in self._line)
        return not busy or sum(one.nbytes for one in busy) + held + work.nbytes <= self._budget

    def _next(self, waiting: W | None) -> Iterator[tuple[W, T | None]]:
        """What the first piece in line has given so far; or nothing, when another one can be taken in hand."""
        first = self._line[0]
        with self._change:
            self._change.wait_for(
                lambda: first.hand.given or first.finished or (waiting is not None and self._takes(waiting))
            )
            given, over = first.hand.fetch(), first.finished
            if over and first.error is None:
                self._line.popleft()
        while given:
            nbytes, what = given.popleft()
            yield first.work, what
            del what
            first.hand.taken(nbytes)
        if over and first.error is not None:
            raise first.error
        if over:
            yield first.work, None

    def stop(self) -> None:
        """What is in hand is broken off between two steps, as a key that the user presses does it."""
        for one in self._line:
            one.hand.stop()

    def join(self) -> None:
        """Wait until nothing is in hand any more."""
        for _ in self._threads:
            self._begun.put(None)
        for thread in self._threads:
            thread.join(_PATIENCE)
        self._line.clear()
        if self._cores:
            torch.set_num_threads(self._cores)  # as it is here: what threads begin with that are started from now on


class Hand(Generic[T]):
    """What a piece of work knows of the crew: where to put what it gives, and that it may be stopped."""

    def __init__(self, change: threading.Condition) -> None:
        self.given: deque[tuple[int, T]] = deque()  # and not fetched
        self.held = 0  # bytes of what is given and not taken yet
        self.stopped = False
        self._change = change
        self._thread: int | None = None  # that may be broken off now

    @contextmanager
    def working(self) -> Iterator[None]:
        """In here the thread may be broken off, but for what is ``shielded``."""
        if self.stopped:
            raise Stopped
        self._thread = threading.get_ident()
        try:
            yield
        finally:
            self._thread = None

    def give(self, nbytes: int, what: T) -> None:
        """Wait until there is room for it: also when it is the turn of this piece, and whoever takes it is slow."""
        self.shielded(partial(self._put, nbytes, what))

    def _put(self, nbytes: int, what: T) -> None:
        with self._change:
            self._change.wait_for(lambda: self.stopped or not self.held or self.held + nbytes <= _HELD_BYTES)
            self.given.append((nbytes, what))
            self.held += nbytes
            self._change.notify_all()

    def fetch(self) -> deque[tuple[int, T]]:
        """What was given, with its bytes; each is held until it is ``taken``."""
        given, self.given = self.given, deque()
        return given

    def taken(self, nbytes: int) -> None:
        with self._change:
            self.held -= nbytes
            self._change.notify_all()

    def shielded(self, call: Callable[[], R]) -> R:
        """What a call gives that holds locks, in which nothing may be broken off."""
        thread, self._thread = self._thread, None
        try:
            return call()
        finally:
            self._thread = thread
            if self.stopped:
                raise Stopped

    def stop(self) -> None:
        with self._change:
            self.stopped = True
            self._change.notify_all()
        if self._thread is not None:
            _interrupt(self._thread)


def _interrupt(thread: int) -> None:
    """Raise Stopped in another thread, between two steps of its Python code."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(Stopped))


class _Started(Generic[T, W]):
    """A piece of work in the hands of a thread."""

    def __init__(self, work: W, change: threading.Condition, cores: int | None) -> None:
        self.work, self.hand = work, Hand[T](change)
        self.finished = False
        self.error: BaseException | None = None
        self._change, self._cores = change, cores

    def run(self) -> None:
        try:
            if self._cores:
                compute_with(self._cores)
            with self.hand.working():
                self.work.run(self.hand)
        except BaseException as error:
            self.error = error
        with self._change:
            self.finished = True
            self._change.notify_all()
