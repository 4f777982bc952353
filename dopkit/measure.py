"""What a process has used: memory, for the receipt."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil

_STATUS = Path("/proc/self/status")
_CGROUP = Path("/sys/fs/cgroup")  # inside a container its own; else the root, which has no limit


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
    """Memory that could be taken without swapping, on this machine or in the container this process is in."""
    available = int(psutil.virtual_memory().available)
    try:
        limit, used = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        fields = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        # cached files count as used, but are given back when memory is short
        inside = int(limit) - int(used) + int(fields.get("inactive_file", 0))
    except (OSError, ValueError):  # no cgroup v2, or its limit is "max"
        return available
    return max(0, min(available, inside))
