"""Several processes of one merge, played by threads: what they say to each other goes through a barrier."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from dopkit.errors import MergeError
from dopkit.processes import Processes

T = TypeVar("T")
PATIENCE = 60.0  # seconds


@dataclass
class Exchange:
    """Where one value from each is laid down and taken up."""

    number: int
    barrier: threading.Barrier = field(init=False)
    values: list[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.number, timeout=PATIENCE)
        self.values = [None] * self.number


@dataclass(frozen=True)
class Played(Processes):
    """One of them."""

    exchange: Exchange = field(default_factory=lambda: Exchange(1))

    def gather(self, value: T) -> list[T]:
        try:
            self.exchange.values[self.rank] = value
            self.exchange.barrier.wait()
            found = list(self.exchange.values)
            self.exchange.barrier.wait()
        except threading.BrokenBarrierError:
            raise MergeError("another process of this merge has ended") from None
        return found


def together(number: int, work: Callable[[Processes], T]) -> list[T]:
    """What ``work`` returns in each of so many processes; the error of the first that failed by itself is raised."""
    exchange = Exchange(number)
    failed: list[BaseException] = []

    def one(rank: int) -> T:
        try:
            return work(Played(rank, number, rank, number, exchange))
        except BaseException as error:
            failed.append(error)
            exchange.barrier.abort()
            raise

    with ThreadPoolExecutor(number) as pool:
        futures = [pool.submit(one, rank) for rank in range(number)]
    if failed:
        raise failed[0]
    return [future.result() for future in futures]
