"""What a child process takes: wall time, processor time, peak memory, bytes read and written. Linux.

Counted by the kernel: time by wait4, bytes by /proc/PID/io, memory by VmHWM. The process is looked at once more when it
has ended and before it is collected, so nothing of the bytes is missed, and children that it waited for are in them.
Peak memory is looked at every few milliseconds; as the kernel keeps the peak, only growth after the last look is
missed. It is that of the largest process: one that has just forked shares its memory with its parent.

``read_bytes`` and ``written_bytes`` are what went to and from the disk, ``asked_read`` and ``asked_written`` what the
program asked for, from the page cache as well. Reads through a memory map are in neither where the cache is warm.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_EVERY = 0.005  # seconds between two looks at the memory
_IO = {"read_bytes": "read_bytes", "write_bytes": "written_bytes", "rchar": "asked_read", "wchar": "asked_written"}


class ChildFailed(Exception):
    """A measured command ended with an error; the text is the end of what it said."""


@dataclass(frozen=True)
class Measured:
    """One run. Seconds and bytes."""

    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int
    read_bytes: int
    written_bytes: int
    asked_read: int
    asked_written: int

    def to_data(self) -> dict[str, Any]:
        return asdict(self)


def run(command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> Measured:
    """Run a command to its end and measure it; what it prints goes to ``log``. Raises ChildFailed."""
    with log.open("w") as out:
        start = time.monotonic()
        child = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
        peak = 0
        while os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            peak = max(peak, *(_peak(pid) for pid in _family(child.pid)))
            time.sleep(_EVERY)
        wall = time.monotonic() - start
    io = _io(child.pid)  # not collected yet: the kernel still has its numbers
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise ChildFailed(f"{' '.join(command)} ended with {child.returncode}:\n{_end_of(log)}")
    return Measured(round(wall, 4), round(usage.ru_utime + usage.ru_stime, 4), peak, **io)


def _end_of(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])


def _family(pid: int) -> list[int]:
    """A process and its descendants that are alive."""
    found = [pid]
    for one in found:
        try:
            for children in Path(f"/proc/{one}/task").glob("*/children"):
                found += map(int, children.read_text().split())
        except OSError:  # gone in the meantime
            continue
    return found


def _peak(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmHWM:")), 0)


def _io(pid: int) -> dict[str, int]:
    found = dict.fromkeys(_IO.values(), 0)
    for line in Path(f"/proc/{pid}/io").read_text().splitlines():
        key, _, value = line.partition(":")
        if key in _IO:
            found[_IO[key]] = int(value)
    return found


def kept_answers(folder: Path) -> Path:
    """Where dopkit keeps what model classes say, for the suite in ``folder``: not the user's own."""
    return folder / "cache"


def environment(folder: Path) -> dict[str, str]:
    """Of the programs that are compared."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "DOPKIT_CACHE": str(kept_answers(folder))}


def clear(out: Path) -> None:
    """Remove a result, and what a run that was stopped has left of one: dopkit would go on with it."""
    for path in (out, out.with_name(out.name + ".partial")):
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)


def median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
