"""The memory of this process and of the machine: what is used, and what is left."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

_STATUS = Path("/proc/self/status")
_GROUPS = Path("/proc/self/cgroup")
_CGROUP = Path("/sys/fs/cgroup")
# Files of a control group: its limit, what is in use, and the entry of memory.stat that can be given back.
_VERSION_2 = ("memory.max", "memory.current", "inactive_file")
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def resident_bytes() -> int:
    """Memory resident now."""
    return int(psutil.Process().memory_info().rss)


def peak_resident_bytes() -> int:
    """The most memory that was resident at once in this process so far, by the kernel's own count."""
    if _STATUS.exists():  # getrusage would begin with what the parent held when it forked
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def available_bytes() -> int:
    """Memory that could be taken without swapping: on this machine, and in the container or cluster job we are in."""
    return max(0, min([int(psutil.virtual_memory().available), *_rooms()]))


def _rooms() -> Iterator[int]:
    """What each control group around this process still allows, where the system has them."""
    try:
        groups = _GROUPS.read_text().splitlines()
    except OSError:
        return
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, *names = (_CGROUP / "memory", *_VERSION_1) if controllers else (_CGROUP, *_VERSION_2)
        here = root / path.lstrip("/")
        # A container may see its own group as the root, and yet be told the path outside.
        for folder in (here, *here.parents):
            if folder.is_relative_to(root) and (room := _room(folder, *names)) is not None:
                yield room


def _room(folder: Path, limit: str, used: str, cached: str) -> int | None:
    try:
        fields = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        # cached files count as used, but are given back when memory is short
        return int((folder / limit).read_text()) - int((folder / used).read_text()) + int(fields.get(cached, 0))
    except (OSError, ValueError):  # no such group, or its limit is "max"
        return None
