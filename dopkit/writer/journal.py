"""What an interrupted run has done: one JSON line per finished tensor, and a lock against a second writer.

Lines are only ever appended, each with one system call; a line that a kill cut short is ignored. Where several
processes write to one folder, each has a journal of its own, which the first takes over into its.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dopkit.errors import OutputError, Problem
from dopkit.writer.failing import writing
from dopkit.writer.folder import GUESTS, JOURNAL, LOCK, guest_journal

Entry = dict[str, Any]


class Lines:
    """A journal that is appended to. Raises OutputError when another process writes it."""

    def __init__(self, path: Path) -> None:
        self.entries: dict[str, Entry] = {}  # of finished tensors, by name
        self._lock = _locked(path.with_suffix(".lock"))
        self._path = path
        self._started = time.monotonic()
        self._handle: int | None = None

    def _begin(self, header: Mapping[str, Any]) -> None:
        with writing(self._path):
            self._handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            # A line cut short must not swallow the next one.
            os.write(self._handle, b"\n" if os.fstat(self._handle).st_size else b"")
        self.append(dict(header))

    def append(self, entry: Entry) -> None:
        """Write one line, stamped with the seconds since this session began. Raises OutputError."""
        assert self._handle is not None
        entry = {**entry, "at": round(time.monotonic() - self._started, 3)}
        line = json.dumps(entry).encode() + b"\n"
        with writing(self._path):
            while line:  # of a line too long for the room that is left, the system takes the beginning
                line = line[os.write(self._handle, line) :]
        if "name" in entry:
            self.entries[entry["name"]] = entry

    def close(self) -> None:
        """Release the lock; the journal stays for the next run, unless the folder was published."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
        self._lock.release()


class Journal(Lines):
    """The journal of one working folder, opened for one plan.

    ``facts`` stand beside the fingerprint in the first line. What several processes left in journals of their own is
    taken over. Raises OutputError when another process writes there, or the folder holds finished tensors of another
    plan.
    """

    def __init__(self, folder: Path, fingerprint: str, overwrite: bool, facts: Mapping[str, Any] | None = None) -> None:
        super().__init__(folder / JOURNAL)
        self._folder = folder
        try:
            left = _left_by_guests(folder)
            lines = read_journal(folder)
            other = any(own and own[0].get("fingerprint") != fingerprint for own in (lines, *left))
            if other and not overwrite and any("name" in line for own in (lines, *left) for line in own):
                raise OutputError("the output folder is in the way", [Problem(str(folder), _OTHER, _REMEDY)])
        except OutputError:
            self._lock.release()
            raise
        if other:
            _clear(folder)
            lines, left = [], []
        self.entries = {line["name"]: line for line in lines if "name" in line}
        self.shipped = [line for line in lines if "shipped" in line]  # shards that have left the disk
        self.seconds_before = _seconds(lines)
        self.peak_before = max((line.get("peak", 0) for line in lines), default=0)
        self._begin({"fingerprint": fingerprint, **(facts or {})})
        self.take_over(line for own in left for line in own if "name" in line)
        self.forget_guests()
        self.resumed = bool(self.entries)

    def take_over(self, entries: Iterable[Entry]) -> None:
        """Enter what other processes have finished."""
        for entry in entries:
            self.append(entry)
            self.peak_before = max(self.peak_before, entry.get("peak", 0))

    def forget_guests(self) -> None:
        """Remove the journals of other processes, none of which may be at work: what they say is taken over."""
        for path in self._folder.glob(GUESTS):
            path.unlink(missing_ok=True)
            path.with_suffix(".lock").unlink(missing_ok=True)

    @property
    def seconds(self) -> float:
        """Time spent on this merge, in earlier sessions and this one."""
        return self.seconds_before + time.monotonic() - self._started


class GuestJournal(Lines):
    """The journal of a process that is not the first: what it finishes, until the first one takes that over."""

    def __init__(self, folder: Path, rank: int, fingerprint: str) -> None:
        super().__init__(folder / guest_journal(rank))
        self._new: list[str] = []
        self._begin({"fingerprint": fingerprint})

    def append(self, entry: Entry) -> None:
        super().append(entry)
        if "name" in entry:
            self._new.append(entry["name"])

    def know(self, entries: Iterable[Entry]) -> None:
        """What others have finished, for those that ask."""
        self.entries |= {entry["name"]: entry for entry in entries}

    def handed_over(self) -> list[Entry]:
        """What was finished since this was asked last."""
        found, self._new = [self.entries[name] for name in self._new], []
        return found


_OTHER = (
    "holds an unfinished merge of another recipe, other sources or another dopkit, torch, device or number of threads"
)
_REMEDY = "Finish that one first, or throw it away with --overwrite."


def read_journal(folder: Path, name: str = JOURNAL) -> list[Entry]:
    """The lines of the journal in a working folder that were written whole; none if there is no journal."""
    path = folder / name
    return parse_lines(path.read_bytes()) if path.exists() else []


def parse_lines(text: bytes) -> list[Entry]:
    """The lines of a journal, or of a piece of it, that are whole."""
    result = []
    for raw in text.split(b"\n"):
        try:
            line = json.loads(raw)
        except ValueError:
            continue
        if isinstance(line, dict):
            result.append(line)
    return result


def _locked(path: Path) -> FileLock:
    lock = FileLock(path)
    with writing(path.parent):
        try:
            lock.acquire(timeout=0)
        except Timeout:  # an OSError, too
            raise OutputError(f"another dopkit is writing to {path.parent}") from None
    return lock


def _left_by_guests(folder: Path) -> list[list[Entry]]:
    """The journals of other processes that were killed. Raises OutputError when one is still at work."""
    paths = sorted(folder.glob(GUESTS))
    for path in paths:
        _locked(path.with_suffix(".lock")).release()
    return [read_journal(folder, path.name) for path in paths]


def _clear(folder: Path) -> None:
    """Remove all but the lock; the journal last, so that whoever is killed meanwhile leaves what tells whose it was."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name == JOURNAL):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def _seconds(lines: list[Entry]) -> float:
    """The sessions' lengths added up: each ends with its last line."""
    total = last = 0.0
    for line in lines:
        if "fingerprint" in line:
            total += last
        last = float(line.get("at", 0.0))
    return total + last
