"""A cluster without one: workers that are called in turn in this process, and lost when a test says so."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dopkit.cluster import Needs
from dopkit.cluster.crew import Hand, Reply
from dopkit.cluster.messages import Batch, Greeting
from dopkit.helping.hired import Hired

Loses = Callable[[int, int, Sequence[str]], bool]  # by the worker's number, its calls so far, and its jobs in hand


@dataclass
class PlayedCluster:
    """``workers`` at a time; those whose numbers are ``apart`` do not find the folder. ``loses`` says who is lost."""

    workers: int = 2
    apart: Collection[int] = ()
    loses: Loses = lambda number, calls, jobs: False
    greets: Callable[[Greeting], Greeting] = lambda greeting: greeting
    most: int = 1000  # workers over time
    hired: int = 0
    dealt: list[Sequence[str]] = field(default_factory=list)
    needs: Needs | None = None

    def check(self) -> None:
        """It is there."""

    @contextmanager
    def open(self, make: Callable[[Any], Any], order: Any, needs: Needs) -> Iterator[PlayedFleet]:
        assert make is Hired
        self.needs = needs
        yield PlayedFleet(self, order)


class PlayedFleet:
    """What is said goes through pickle, as it does between machines."""

    def __init__(self, cluster: PlayedCluster, order: Any) -> None:
        self.cluster, self.order = cluster, order
        self.there: dict[Hand, Hired] = {}
        self.numbers: dict[Hand, int] = {}
        self.asked: dict[Hand, Batch | str | None] = {}
        self.calls: dict[Hand, int] = {}
        self.jobs: dict[Hand, Sequence[str]] = {}

    def hire(self, most: int) -> list[Hand]:
        hands = []
        while len(self.there) < min(self.cluster.workers, most) and self.cluster.hired < self.cluster.most:
            hand, number = Hand(f"node{self.cluster.hired}"), self.cluster.hired
            self.cluster.hired += 1
            order = pickle.loads(pickle.dumps(self.order))
            if number in self.cluster.apart:
                order = replace(order, folder=Path("/nowhere") / order.folder.name)
            self.there[hand], self.numbers[hand], self.calls[hand] = Hired(order), number, 0
            self.asked[hand], self.jobs[hand] = "greet", ()
            hands.append(hand)
        return hands

    def ask(self, hand: Hand, batch: Batch | None) -> None:
        self.asked[hand] = pickle.loads(pickle.dumps(batch))
        if batch is not None:
            self.jobs[hand] = batch.jobs
            self.cluster.dealt.append(batch.jobs)

    def wait(self, seconds: float) -> list[tuple[Hand, Reply]]:
        asked, self.asked = self.asked, {}
        return [(hand, self._reply(hand, what)) for hand, what in asked.items()]

    def _reply(self, hand: Hand, what: Batch | str | None) -> Reply:
        worker = self.there[hand]
        self.calls[hand] += 1
        if self.cluster.loses(self.numbers[hand], self.calls[hand], self.jobs[hand]):
            del self.there[hand]
            return None
        if what == "greet":
            return self.cluster.greets(pickle.loads(pickle.dumps(worker.greet())))
        assert not isinstance(what, str)
        reply: Reply = pickle.loads(pickle.dumps(worker.report(what)))
        return reply
