"""A merge whose jobs are done by workers on a Ray cluster: the part of the process that leads it.

``deck`` deals jobs out, ``crew`` talks to the workers, ``fleet`` is Ray; what a worker does is ``helping.hired``. Knows
jobs, journals and writers; no arithmetic. The only importer of ray, and only where a merge asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from dopkit.cluster.crew import Fleet


@dataclass(frozen=True)
class Needs:
    """What one worker takes."""

    cpus: int
    memory: int  # bytes
    gpus: int = 0
    memory_here: int | None = None  # that all workers of a machine may take together; None is what the cluster says

    def fit(self, resources: Mapping[str, float]) -> int:
        """How many workers a machine has room for, by what Ray calls its resources."""
        memory = int(resources.get("memory", 0))
        if self.memory_here is not None:
            memory = min(memory, self.memory_here)
        rooms = [int(resources.get("CPU", 0)) // self.cpus, memory // self.memory]
        return min([*rooms, int(resources.get("GPU", 0)) // self.gpus] if self.gpus else rooms)


class Cluster(Protocol):
    """Where workers can be had."""

    def check(self) -> None:
        """Refuse what shows at once, before anything is read. Raises PlanError."""

    def open(self, make: Callable[[Any], Any], order: Any, needs: Needs) -> AbstractContextManager[Fleet]:
        """Workers that are ``make(order)``, a ``helping.hired.Hired``. Raises PlanError."""


@dataclass(frozen=True)
class Ray:
    """A Ray cluster.

    ``address`` is ``host:port`` of its head, ``auto`` for the one of this machine, ``local`` for a new one; None is
    what the environment variable RAY_ADDRESS says, else a cluster that runs on this machine, else a new one.
    """

    address: str | None = None

    def check(self) -> None:
        """Raises PlanError when ray is not installed, or nobody answers at the address."""
        from dopkit.cluster import fleet

        fleet.check(self.address)

    def open(self, make: Callable[[Any], Any], order: Any, needs: Needs) -> AbstractContextManager[Fleet]:
        from dopkit.cluster import fleet

        return fleet.opened(self.address, make, order, needs)
