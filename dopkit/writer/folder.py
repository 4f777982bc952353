"""The output folder from the outside: is it free, finished, in the way; and its appearance in one step.

A merge is made in ``OUT.partial`` and becomes ``OUT`` by a rename, so ``OUT`` is there whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from dopkit.errors import OutputError, Problem
from dopkit.writer.failing import writing

JOURNAL = "journal.jsonl"
LOCK = "journal.lock"
GUESTS = "journal.*.jsonl"  # of the other processes, where several write; each has its lock beside it
RECEIPT = "dopkit_receipt.json"
EVALUATION = "dopkit_evaluation.json"
REPORT = "report.html"


@dataclass(frozen=True)
class OutputFolder:
    """Where a merge goes. Nothing is written before ``prepare``."""

    path: Path
    overwrite: bool = False  # replace what dopkit made there, and throw away what it left unfinished
    grows: bool = False  # replace what dopkit made there: this merge goes on from it

    @property
    def partial(self) -> Path:
        return self.real.with_name(self.real.name + ".partial")

    @property
    def _replaced(self) -> Path:
        """Where the folder that is being replaced waits until its successor is in its place.

        It is removed then: the name must be none that somebody would give to a copy of his own.
        """
        return self.real.with_name(self.real.name + ".replaced-by-dopkit")

    @property
    def real(self) -> Path:
        """The folder under a name that others can stand beside: not ``.``, and not a link to it."""
        return self.path.resolve() if self.path.name in ("", "..") or self.path.is_symlink() else self.path

    def obstacle(self) -> Problem | None:
        """What stands in the way whatever the merge: files that dopkit did not make are never touched."""
        # A run that was killed at its very beginning has left a lock alone.
        for path, markers in ((self.path, [RECEIPT]), (self.partial, [JOURNAL, LOCK])):
            if path.exists() and not path.is_dir():
                return Problem(str(path), "is in the way: it is a file", "Choose another folder with -o.")
            if path.is_dir() and any(path.iterdir()) and not any((path / marker).is_file() for marker in markers):
                return Problem(str(path), _NOT_OURS, "Choose another folder with -o, or move it away.")
        if self._replaces and Path.cwd().is_relative_to(self.path.resolve()):
            what = "is the folder you are in, and would be replaced as a whole"
            return Problem(str(self.path), what, "Go to another folder first, or choose another one with -o.")
        if self._replaces and os.path.ismount(self.real):  # the working folder would be on another disk, too
            what = "is where a disk is mounted: a finished folder cannot take its place"
            return Problem(str(self.path), what, f"Choose a folder on it with -o: {self.path / 'merged'}")
        parent = next(parent for parent in self.real.absolute().parents if parent.exists())
        if not os.access(parent, os.W_OK):
            return Problem(str(parent), "cannot be written to", "Choose another folder with -o.")
        return None

    @property
    def _replaces(self) -> bool:
        """Whether ``publish`` takes a folder away that is there now."""
        return self.path.is_dir() and (self.overwrite or self.grows or not any(self.path.iterdir()))

    def finished(self, fingerprint: str, weights: bool = True) -> bool:
        """Whether the folder already is this very merge, with its ``weights`` if they are asked for.

        They may be on the Hub alone. Raises OutputError when it is another merge.
        """
        if not (self.path / RECEIPT).is_file() or self.overwrite or self.grows:
            return False
        try:
            found = json.loads((self.path / RECEIPT).read_text(encoding="utf-8"))
        except ValueError:
            found = {}
        if not isinstance(found, dict):
            found = {}
        if found.get("fingerprint") == fingerprint:
            files = [one["file"] for key in ("shards", "heads") for one in found.get(key, [])]
            return not weights or all((self.path / file).is_file() for file in files)
        what = "holds another merge (another recipe, or sources that changed since)"
        remedy = "Choose another folder with -o, or replace it with --overwrite."
        raise OutputError("the output folder is in the way", [Problem(str(self.path), what, remedy)])

    def bytes_written(self) -> int:
        """Disk space that an unfinished run has already taken."""
        if not self.partial.is_dir():
            return 0
        return sum(path.stat().st_blocks * 512 for path in self.partial.rglob("*") if path.is_file())

    def prepare(self) -> Path:
        """Make the working folder, or return the one an interrupted run left."""
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make {self.partial}: {error.strerror}") from error
        return self.partial

    def discard_untouched(self) -> None:
        """Remove the working folder if it holds a journal alone, and that names no finished tensor."""
        names = {path.name for path in self.partial.iterdir()} if self.partial.is_dir() else set()
        if JOURNAL in names <= {JOURNAL, LOCK} and b'"name"' not in (self.partial / JOURNAL).read_bytes():
            shutil.rmtree(self.partial, ignore_errors=True)

    def publish(self) -> None:
        """The working folder, complete, becomes the output folder; what it replaces goes last.

        The journal comes along: until the folder is in its place, the same command goes on from there. Raises
        OutputError.
        """
        place, old = self.real, self._replaced
        if place.is_dir() and any(place.iterdir()) and not (place / RECEIPT).is_file():  # since it was looked at
            problem = Problem(str(self.path), _NOT_OURS, "Move it away and run the same command again: all is made.")
            raise OutputError("the output folder is in the way", [problem])
        with writing(self.path):
            if place.is_dir():
                if any(place.iterdir()):
                    shutil.rmtree(old, ignore_errors=True)
                    place.rename(old)
                else:
                    place.rmdir()
            self.partial.rename(place)
        for name in (JOURNAL, LOCK):
            (place / name).unlink(missing_ok=True)
        shutil.rmtree(old, ignore_errors=True)

    def put_back(self) -> None:
        """Bring back the folder that a killed ``publish`` had moved away, for a merge that goes on from it."""
        if not self.real.exists() and (self._replaced / RECEIPT).is_file():
            self._replaced.rename(self.real)

    def free_location(self) -> Path:
        """The folder itself, or the nearest one around it that exists: tells which disk it would be on."""
        path = self.path.absolute()
        return next(folder for folder in (path, *path.parents) if folder.is_dir())

    def free_bytes(self) -> int:
        """Free space on the disk that the folder is on or would be on."""
        return shutil.disk_usage(self.free_location()).free


_NOT_OURS = "is in the way: it holds files that dopkit did not make"


def guest_journal(rank: int) -> str:
    """The journal of a process that is not the first."""
    return f"journal.{rank}.jsonl"
