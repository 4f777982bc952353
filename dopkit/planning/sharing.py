"""Which jobs each of several processes does. Pure arithmetic on the plan: all of them find the same shares."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

from dopkit.planning.jobs import TensorJob

BYTES_PER_SECOND = 1e9  # of reading, casting and writing: rough, as the efforts are

Cost = Callable[[TensorJob], float]


def merging_cost(job: TensorJob) -> float:
    """Rough seconds of one core for the arithmetic, the reading and the writing of one job."""
    return job.effort + (1 + max(1, len(job.inputs))) * moving_cost(job)


def moving_cost(job: TensorJob) -> float:
    """Rough seconds for what is done with each byte of a result, and no arithmetic to speak of."""
    return job.nbytes / BYTES_PER_SECOND


def shares(jobs: Sequence[TensorJob], number: int, cost: Cost) -> list[list[TensorJob]]:
    """The jobs dealt out to so many processes, the dearest first, each to the one with the least to do.

    No share costs more than 4/3 of what the dearest one costs in the best of all ways (Graham 1969). Within a share
    the order is that of ``jobs``.
    """
    places = sorted(range(len(jobs)), key=lambda place: (-cost(jobs[place]), place))
    loads = [(0.0, rank) for rank in range(number)]
    dealt: list[list[int]] = [[] for _ in range(number)]
    for place in places:
        load, rank = heapq.heappop(loads)
        dealt[rank].append(place)
        heapq.heappush(loads, (load + cost(jobs[place]), rank))
    return [[jobs[place] for place in sorted(own)] for own in dealt]
