"""What an interrupted run has done: one JSON line per finished tensor, and a lock against a second writer.

Lines are only ever appended, each with one system call; a line that a kill cut short is ignored.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dopkit.errors import OutputError, Problem
from dopkit.writer.folder import JOURNAL, LOCK

Entry = dict[str, Any]


class Journal:
    """The journal of one working folder, opened for one plan.

    ``facts`` stand beside the fingerprint in the first line. Raises OutputError when another process writes there, or
    the folder holds finished tensors of another plan.
    """

    def __init__(self, folder: Path, fingerprint: str, overwrite: bool, facts: Mapping[str, Any] | None = None) -> None:
        self._lock = FileLock(folder / LOCK)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise OutputError(f"another dopkit is writing to {folder}") from None
        self._path = folder / JOURNAL
        lines = read_journal(folder)
        other = bool(lines) and lines[0].get("fingerprint") != fingerprint
        if other and not overwrite and any("name" in line for line in lines):
            self._lock.release()
            raise OutputError("the output folder is in the way", [Problem(str(folder), _OTHER, _REMEDY)])
        if other:
            for path in folder.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.name != LOCK:
                    path.unlink()
            lines = []
        self.entries: dict[str, Entry] = {line["name"]: line for line in lines if "name" in line}
        self.shipped = [line for line in lines if "shipped" in line]  # shards that have left the disk
        self.seconds_before = _seconds(lines)
        self.peak_before = max((line.get("peak", 0) for line in lines), default=0)
        self.resumed = bool(self.entries)
        self._handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._started = time.monotonic()
        # A line cut short must not swallow the next one.
        os.write(self._handle, b"\n" if lines else b"")
        self.append({"fingerprint": fingerprint, **(facts or {})})

    def append(self, entry: Entry) -> None:
        """Write one line, stamped with the seconds since this session began."""
        entry = {**entry, "at": round(time.monotonic() - self._started, 3)}
        if "name" in entry:
            self.entries[entry["name"]] = entry
        os.write(self._handle, json.dumps(entry).encode() + b"\n")

    @property
    def seconds(self) -> float:
        """Time spent on this merge, in earlier sessions and this one."""
        return self.seconds_before + time.monotonic() - self._started

    def close(self) -> None:
        """Release the lock; the journal stays for the next run, unless the folder was published."""
        os.close(self._handle)
        self._lock.release()


_OTHER = "holds an unfinished merge of another recipe, other sources or another dopkit, torch or device"
_REMEDY = "Finish that one first, or throw it away with --overwrite."


def read_journal(folder: Path) -> list[Entry]:
    """The lines of the journal in a working folder that were written whole; none if there is no journal."""
    path = folder / JOURNAL
    if not path.exists():
        return []
    result = []
    for raw in path.read_bytes().split(b"\n"):
        try:
            line = json.loads(raw)
        except ValueError:
            continue
        if isinstance(line, dict):
            result.append(line)
    return result


def _seconds(lines: list[Entry]) -> float:
    """The sessions' lengths added up: each ends with its last line."""
    total = last = 0.0
    for line in lines:
        if "fingerprint" in line:
            total += last
        last = float(line.get("at", 0.0))
    return total + last
