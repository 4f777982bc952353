"""The leading process among its workers: hires them, deals jobs out, keeps what they report, replaces who is lost.

Knows a cluster as a ``Fleet`` only, so that it can be tested without one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

from dopkit import __version__
from dopkit.cluster.deck import Deck
from dopkit.cluster.messages import Batch, Began, Done, Greeting, Journaled, Over, Piece, Said
from dopkit.errors import MergeError, OutputError, PlanError, Problem, count
from dopkit.planning import TensorJob
from dopkit.progress import Progress
from dopkit.spreading import Pass, Run
from dopkit.writer import Journal, ShardWriter

PATIENCE = 120.0  # seconds without any worker before we give up
_LOOK_EVERY = 1.0  # seconds between looks at the cluster

Reply = Greeting | list[Said] | None  # None: the worker is lost


@dataclass(eq=False)
class Hand:
    """A worker."""

    node: str  # the name of its machine
    met: bool = False
    shares: bool = False  # it writes into the working folder itself
    busy: bool = False  # it has a batch
    jobs: dict[str, TensorJob] = field(default_factory=dict)  # of it not yet journaled, by their names in the journal


class Fleet(Protocol):
    """Workers on other machines."""

    def hire(self, most: int) -> Collection[Hand]:
        """Start workers where there is room, up to so many in all; each will greet."""

    def ask(self, hand: Hand, batch: Batch | None) -> None:
        """Give a worker a batch, or ask on."""

    def wait(self, seconds: float) -> Sequence[tuple[Hand, Reply]]:
        """What was said since; returns at once when there is something. Who is lost or dismissed says nothing more."""


@dataclass(frozen=True)
class Terms:
    """What a worker must agree with: its results would be other bytes."""

    engine: str
    fingerprint: str


class Crew:
    """Does the jobs of a merge with workers. The fleet is opened with the first job, and closed with the crew."""

    def __init__(
        self,
        terms: Terms,
        open_fleet: Callable[[], AbstractContextManager[Fleet]],
        journal: Journal,
        writers: Mapping[str, ShardWriter],
        progress: Progress,
        patience: float = PATIENCE,
    ) -> None:
        self._terms, self._open_fleet, self._journal = terms, open_fleet, journal
        self._writers, self._patience, self.progress = writers, patience, progress
        self._fleet: Fleet | None = None
        self._hands: list[Hand] = []
        self._met = 0
        self._written: set[str] = set()  # by workers, by their names in the journal

    def __enter__(self) -> Crew:
        self._stack = ExitStack()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def number(self) -> int:
        """How many workers there have been."""
        return self._met

    def do(self, work: Pass, run: Run) -> None:
        """Have all jobs done; ``run`` does them here, which is for those that no worker can do.

        Raises MergeError, OutputError and what a worker raises; PlanError when one would give other bytes.
        """
        if not work.jobs:
            return
        progress = self.progress
        if self._fleet is None:
            progress.stage("joining the cluster")
            self._fleet = self._stack.enter_context(self._open_fleet())
            for writer in self._writers.values():
                writer.preallocate()
        progress.stage("scaling" if work.reads_output else "merging")
        progress.begin(len(work.jobs), sum(job.nbytes for job in work.jobs), sum(map(work.effort, work.jobs)))
        self._left = {job.name: job for job in work.jobs}
        deck = Deck(work.jobs, work.cost)
        begun = time.monotonic()
        while not deck.over:
            self._hands += self._hired(len(work.jobs))
            able = [hand for hand in self._hands if hand.met and (hand.shares or not work.reads_output)]
            if work.reads_output and not able and all(hand.met for hand in self._hands):
                run(deck.waiting)  # what they would read is here, and not there
                return
            for hand in able:
                self._give(hand, deck, work, len(able))
            for hand, reply in self._fleet.wait(_LOOK_EVERY):
                self._heard(hand, reply, deck, work)
            if self._hands:
                begun = time.monotonic()  # who does not greet yet may be downloading, or wait for its CPUs
            elif time.monotonic() - begun > self._patience:
                raise MergeError("no worker of the cluster is left", [Problem("", _NOBODY, _AGAIN)])
        if self._written:
            for writer in self._writers.values():
                writer.take_over(self._written)

    def _hired(self, most: int) -> Collection[Hand]:
        assert self._fleet is not None
        hired = self._fleet.hire(most)
        if hired:
            nodes = len({hand.node for hand in hired})
            self.progress.note(f"asked for {count(len(hired), 'worker')} on {count(nodes, 'machine')}")
        return hired

    def _give(self, hand: Hand, deck: Deck, work: Pass, workers: int) -> None:
        batch = [] if hand.busy else deck.deal(workers)
        if batch:
            assert self._fleet is not None
            hand.busy = True
            hand.jobs = {work.key(job): job for job in batch}
            self._fleet.ask(hand, Batch([job.name for job in batch], work.told(batch)))

    def _heard(self, hand: Hand, reply: Reply, deck: Deck, work: Pass) -> None:
        if reply is None:
            self._hands.remove(hand)
            if hand.met:
                lost = f", {len(hand.jobs)} in hand will be merged again" if hand.jobs else ""
                self.progress.note(f"a worker on {hand.node} is lost{lost}")
            deck.lost(list(hand.jobs.values()))
        elif isinstance(reply, Greeting):
            self._greeted(hand, reply)
        else:
            over = False
            for said in reply:
                over = isinstance(said, Over)
                self._take(hand, said, deck, work)
            if over:
                hand.busy = False
            else:
                assert self._fleet is not None
                self._fleet.ask(hand, None)

    def _greeted(self, hand: Hand, said: Greeting) -> None:
        if said.error is not None:
            raise said.error.error()
        if said.version != __version__:
            what = f"it has dopkit {said.version}, and this is {__version__}"
            raise _disagree(hand, what, "Install the same version everywhere.")
        if said.engine != self._terms.engine:
            what = f"it would give different bytes: {said.engine}, and this is {self._terms.engine}"
            raise _disagree(hand, what, "Give all machines the same kind of device and the same torch.")
        if said.fingerprint != self._terms.fingerprint:
            raise _disagree(hand, "it finds other models there", _OTHER)
        hand.met, hand.shares = True, said.shares
        self._met += 1
        if self._met == 1:
            self.progress.note("the first worker has begun")

    def _take(self, hand: Hand, said: Said, deck: Deck, work: Pass) -> None:
        match said:
            case Began(name):
                self.progress.tensor(name)
            case Done(name):
                self._show(name, work)
            case Piece(place, name, position, data):
                self._writers[place].write(name, position, memoryview(data))
            case Journaled(entry):
                self._enter(hand, entry)
                job = hand.jobs.pop(entry["name"], None)
                if job is not None:
                    deck.done(job)
                    self._show(job.name, work)
            case Over(failure):
                if failure is not None:
                    raise failure.error()
                assert not hand.jobs, "a batch is over before its jobs are"

    def _enter(self, hand: Hand, entry: dict[str, Any]) -> None:
        """Journal what a worker has made: it is in the folder, or has come here piece by piece."""
        if hand.shares:
            self._journal.take_over([entry])
            self._written.add(entry["name"])
            return
        writer, name = next(
            (writer, name)
            for writer in self._writers.values()
            if (name := writer.named(entry["name"])) is not None
        )  # fmt: skip
        record = {key: value for key, value in entry.items() if key not in ("name", "crc", "at")}
        writer.complete(name, record)
        if writer.entry(name)["crc"] != entry["crc"]:
            problem = Problem(name, "its bytes are not those that a worker has sent")
            raise OutputError(f"a result from {hand.node} has changed on its way", [problem])

    def _show(self, name: str, work: Pass) -> None:
        """A tensor is made, for the first time; made again it was shown before."""
        job = self._left.pop(name, None)
        if job is not None:
            self.progress.advance(job.nbytes, work.effort(job))
            self.progress.tensor_done(name)


def _disagree(hand: Hand, what: str, remedy: str) -> PlanError:
    return PlanError("a worker does not agree with this process", [Problem(hand.node, what, remedy)])


_NOBODY = "they are lost, or could not begin, and no other has come"
_AGAIN = "See `ray status`. The same command continues, with --executor ray or without."
_OTHER = "Are the models on storage that every machine shares? If one on the Hub has just changed, run again."
