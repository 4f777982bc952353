"""Where a tensor is merged: the device that was asked for, or the CPU when it does not fit there.

The only importer of accelerate. Knows sizes, not tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from accelerate import PartialState
from accelerate.utils import get_max_memory

from dopkit.errors import PlanError, Problem
from dopkit.limits import MemoryLimit

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Devices:
    """The main device and how many bytes of it a job may take."""

    main: torch.device
    free_bytes: int

    @property
    def own_bytes(self) -> int:
        """What of it is memory beside the host's."""
        return 0 if self.main.type == "cpu" else self.free_bytes

    @property
    def has_float64(self) -> bool:
        """Apple's GPUs do not."""
        return self.main.type != "mps"

    def place(self, working_bytes: int, float64: bool = False) -> torch.device:
        """The main device if the job fits there, else the CPU."""
        fits = working_bytes <= self.free_bytes and (self.has_float64 or not float64)
        return self.main if fits or self.main.type == "cpu" else CPU

    def among(self, number: int) -> Devices:
        """The share of one of so many merges that go on at the same time."""
        return replace(self, free_bytes=self.free_bytes // number)

    @property
    def engine(self) -> str:
        """What decides the last bits of a result: a run begun with one is not continued with another."""
        return f"{self.main.type} torch-{torch.__version__} threads-{torch.get_num_threads()}"


def choose(name: str, local_rank: int = 0, limit: MemoryLimit | None = None) -> Devices:
    """``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``. Raises PlanError when there is no such device here.

    ``local_rank`` is the number of this process among those on the machine: ``cuda`` is a GPU for each. A ``limit`` for
    a device that is not the one chosen is refused as well.
    """
    if name == "cuda" and local_rank and torch.cuda.device_count():
        name = f"cuda:{local_rank % torch.cuda.device_count()}"
    device = PartialState().device if name == "auto" else torch.device(name)
    device = CPU if device.type == "cpu" else device  # several processes have theirs as cpu:0
    if name != "auto" and not _exists(device):
        raise PlanError(f"there is no device {name} here", [Problem("", "", "`--device auto` takes what there is.")])
    free = get_max_memory()
    key = "cpu" if device.type == "cpu" else "mps" if device.type == "mps" else device.index or 0
    room = int(free.get(key, 0))
    if limit is not None and limit.device is not None:
        if limit.kind != device.type:
            what = f"it is for {limit.kind}, and this runs on {device.type}"
            remedy = f"Leave {limit.kind}= out, or choose --device {limit.kind}."
            raise PlanError("the memory limit fits no device", [Problem("--max-memory", what, remedy)])
        room = min(room, limit.device)
    return Devices(device, room)


def _exists(device: torch.device) -> bool:
    if device.type == "cuda":
        return (device.index or 0) < torch.cuda.device_count()
    return device.type == "cpu" or (device.type == "mps" and torch.backends.mps.is_available())
