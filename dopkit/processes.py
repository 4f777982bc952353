"""The processes that ``accelerate launch`` or ``torchrun`` has started for one merge, and what they tell each other.

Small Python objects only, over gloo: weights go through the files. Knows no plan and no folder. Imports torch and
accelerate only where there is more than one process.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from dopkit.errors import MergeError, Problem

T = TypeVar("T")

# How long one process may work while the others wait for it. A process that fails is noticed at once, not by this.
_PATIENCE = timedelta(days=7)
_GRACE = 10.0  # seconds that the launcher has to end us after another process has failed, before we say so ourselves


@dataclass(frozen=True)
class Processes:
    """The processes of one merge, seen from one of them. By default it is alone."""

    rank: int = 0  # this one's number; 0 is the first, which commits
    number: int = 1  # of processes, on all machines
    local_rank: int = 0  # this one's number on its machine
    here: int = 1  # processes on this machine

    @property
    def first(self) -> bool:
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """What every process says here, by rank; waits for all of them.

        Raises MergeError when one of them has ended.
        """
        if self.number == 1:
            return [value]
        from accelerate.utils import gather_object

        try:
            found: list[T] = gather_object([value])
        except RuntimeError as error:
            time.sleep(_GRACE)
            what = "Its own message says why. The same command continues where it stopped."
            raise MergeError("another process of this merge has ended", [Problem("", "", what)]) from error
        return found

    def tell(self, value: Any = None) -> Any:
        """What the first process says here; ``value`` counts in the first alone."""
        return self.gather(value if self.first else None)[0]

    def leave(self) -> None:
        """Part from the others: the last thing that each does, whether it has failed or not."""
        if self.number > 1:
            from accelerate import PartialState

            PartialState().destroy_process_group()  # its threads would else be cut off in the middle of something

    @contextmanager
    def first_goes_first(self) -> Iterator[None]:
        """The others do this when the first has done it, and never when it fails: then it alone says why."""
        if not self.first:
            self.tell()
        yield
        if self.first:
            self.tell()


ALONE = Processes()


def launched() -> bool:
    """Whether this process is one of several that were started together."""
    return {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= os.environ.keys() and os.environ["WORLD_SIZE"] not in ("", "1")


def join(device: str = "auto") -> Processes:
    """Meet the other processes, if there are any; ``device`` as ``device.choose`` takes it."""
    if not launched():
        return ALONE
    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    cpu = device == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available()
    state = PartialState(cpu=cpu, backend="gloo", timeout=_PATIENCE)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes))
    return Processes(state.process_index, state.num_processes, state.local_process_index, here)
