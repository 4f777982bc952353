"""What the numbers were measured on: processor, cores, memory, disk, and what else was running. Reads /proc; Linux."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

Facts = dict[str, Any]


def describe(folder: Path) -> Facts:
    """The machine, and the disk that ``folder`` is on. Nothing here changes between two runs on one machine."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "cpu": _field(Path("/proc/cpuinfo"), "model name") or platform.machine(),
        "vector": next((name for name in ("avx512f", "avx2", "asimd") if name in _flags()), ""),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": 1024 * int((_field(Path("/proc/meminfo"), "MemTotal") or "0 kB").split()[0]),
        "disk": _disk(folder),
        "python": platform.python_version(),
    }


def load() -> Facts:
    """How busy the machine was: the load averages, which a quiet machine has well below its number of cores."""
    one, five, _ = os.getloadavg()
    return {"load_1_minute": round(one, 2), "load_5_minutes": round(five, 2)}


def in_words(facts: Facts) -> str:
    memory = facts["memory_bytes"] / 2**30
    vector = f" ({facts['vector']})" if facts["vector"] else ""
    return (
        f"{facts['cores']} cores of {facts['cpu']}{vector}, {memory:.0f} GiB of memory, {facts['disk']}; "
        f"{facts['system']}, Python {facts['python']}"
    )


def _field(path: Path, name: str) -> str | None:
    if not path.exists():
        return None
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None


def _flags() -> set[str]:
    cpu = Path("/proc/cpuinfo")
    return set((_field(cpu, "flags") or _field(cpu, "Features") or "").split())


def _disk(folder: Path) -> str:
    """File system and device of the longest mount point above ``folder``."""
    mounts = Path("/proc/mounts")
    if not mounts.exists():
        return "unknown disk"
    place = folder.resolve()
    best = ("", "unknown", "disk")
    for line in mounts.read_text().splitlines():
        device, point, kind, *_ = line.split()
        if place.is_relative_to(point) and len(point) >= len(best[0]):
            best = (point, kind, device)
    return f"{best[1]} on {best[2]}"
