"""Which jobs are still to be dealt out, who was lost with which, and when that is enough. Pure bookkeeping."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from dopkit.errors import MergeError, Problem
from dopkit.planning import TensorJob
from dopkit.planning.sharing import Cost

MOST_SECONDS = 60.0  # of a batch, by the plan's rough estimate: what is lost with a worker
MOST_LOSSES = 3  # of workers with one job in hand


class Deck:
    """Jobs dealt out in batches, the dearest first; the batches shrink towards the end.

    A batch is the share of half of what is left (guided self-scheduling, Polychronopoulos and Kuck 1987; factoring,
    Flynn Hummel et al. 1992): a slow worker that takes the last one does not hold up the others for long.
    """

    def __init__(self, jobs: Sequence[TensorJob], cost: Cost) -> None:
        self._cost = cost
        self._order = {job.name: place for place, job in enumerate(jobs)}
        self._waiting = sorted(jobs, key=self._rank)
        self._in_hand: set[str] = set()
        self._losses: Counter[str] = Counter()

    def _rank(self, job: TensorJob) -> tuple[float, int]:
        return -self._cost(job), self._order[job.name]

    @property
    def over(self) -> bool:
        """Whether every job is done."""
        return not self._waiting and not self._in_hand

    @property
    def waiting(self) -> Sequence[TensorJob]:
        """What no worker has, in the order of the jobs."""
        return self._ordered(self._waiting)

    def deal(self, workers: int) -> list[TensorJob]:
        """The next batch, where there are so many workers; none when all is dealt. A job that was lost comes alone."""
        if not self._waiting:
            return []
        share = sum(map(self._cost, self._waiting)) / (2 * max(1, workers))
        wanted, batch, held = min(MOST_SECONDS, share), [self._waiting.pop(0)], 0.0
        if not self._losses[batch[0].name]:
            held = self._cost(batch[0])
            while self._waiting and not self._losses[self._waiting[0].name]:
                if held + self._cost(self._waiting[0]) > wanted:
                    break
                held += self._cost(self._waiting[0])
                batch.append(self._waiting.pop(0))
        self._in_hand |= {job.name for job in batch}
        return self._ordered(batch)

    def done(self, job: TensorJob) -> None:
        self._in_hand.discard(job.name)

    def lost(self, jobs: Collection[TensorJob]) -> None:
        """A worker is gone with these in hand. Raises MergeError when one of them has gone with too many workers."""
        for job in jobs:
            self._in_hand.discard(job.name)
            self._losses[job.name] += 1
        self._waiting = sorted([*self._waiting, *jobs], key=self._rank)
        worst = [job for job in jobs if self._losses[job.name] >= MOST_LOSSES]
        if worst:
            headline = f"{MOST_LOSSES} workers were lost while they merged {worst[0].name}"
            raise MergeError(headline, [Problem(job.name, _WHY, _REMEDY) for job in worst])

    def _ordered(self, jobs: Collection[TensorJob]) -> list[TensorJob]:
        return sorted(jobs, key=lambda job: self._order[job.name])


_WHY = "their processes ended without a word, as when memory runs out"
_REMEDY = "Use machines with more memory, or --max-memory; what is finished stays, and the same command continues."
