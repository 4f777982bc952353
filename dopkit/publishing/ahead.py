"""Uploading while the merge still goes on. Part of ``publishing``."""

from __future__ import annotations

from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock, Thread

from dopkit import hub, verification
from dopkit.errors import HubError
from dopkit.planning import Plan
from dopkit.publishing.place import PushOptions, target_of
from dopkit.writer import Journal, ShardFile


class Ahead:
    """Uploads finished shards while the merge still goes on, so that ``push`` finds them on the Hub.

    What goes wrong is not told, as a rule: ``push`` sends again what is missing, and tells. With ``frees`` each shard
    leaves the disk when it is uploaded, so that never more than two are there: one on its way, one in the making.
    """

    def __init__(self, options: PushOptions, plan: Plan, journal: Journal, frees: bool) -> None:
        assert options.repo_id is not None
        self._target = target_of(options.repo_id, options)
        self._plan, self._journal, self._frees = plan, journal, frees
        self._waiting: SimpleQueue[tuple[ShardFile, Path] | None] = SimpleQueue()
        self._idle = Event()
        self._idle.set()
        self._lock = Lock()  # held while a shard leaves the disk
        self._stopped = False
        self._failed: Exception | None = None
        self.freed: list[str] = []
        self._thread = Thread(target=self._work, name="dopkit-upload", daemon=True)
        self._thread.start()

    def add(self, shard: ShardFile, path: Path) -> None:
        """Upload this file in its turn; with ``frees`` waits for the one before. Raises HubError, VerificationError."""
        if self._frees:
            verification.verify_shard(path, self._plan)
            self._idle.wait()
            self._raise()
            self._idle.clear()
        self._waiting.put((shard, path))

    def finish(self) -> None:
        """Wait until everything added has had its turn."""
        self._waiting.put(None)
        self._thread.join()
        self._raise()

    def stop(self) -> None:
        """Begin no further upload, and touch no file any more."""
        with self._lock:
            self._stopped = True
        self._idle.set()
        self._waiting.put(None)

    def _raise(self) -> None:
        if self._failed is not None:
            raise self._failed

    def _work(self) -> None:
        sending = None
        while (item := self._waiting.get()) is not None and not self._stopped:
            shard, path = item
            try:
                if sending is None:
                    sending = hub.Push(self._target, hub.prepare(self._target, hub.look(self._target)))
                sending.send([hub.Outgoing(shard.file, path, shard.sha256)])
                if self._frees:
                    self._free(shard, path)
            except Exception as error:
                sending = None  # the next shard looks anew
                if self._frees or not isinstance(error, HubError):
                    self._failed = error
            self._idle.set()

    def _free(self, shard: ShardFile, path: Path) -> None:
        with self._lock:
            if not self._stopped:
                line = {"shipped": shard.file, "bytes": shard.size, "sha256": shard.sha256, "repo": self._target.repo}
                self._journal.append(line)
                self.freed.append(shard.file)
                path.unlink()


def shipped(options: PushOptions, journal: Journal, folder: Path) -> dict[str, ShardFile]:
    """The shards that an interrupted run has uploaded and freed, and that the Hub still has. Raises HubError."""
    lines = [line for line in journal.shipped if line["repo"] == options.repo_id]
    if not lines:
        return {}
    target = target_of(lines[0]["repo"], options)
    files = [hub.Outgoing(line["shipped"], None, line["sha256"], line["bytes"]) for line in lines]
    lost = hub.not_stored(target, files) if hub.look(target).commit else files
    there = {file.name: ShardFile(file.name, file.size, file.sha256) for file in files if file not in lost}
    for name in there:
        (folder / name).unlink(missing_ok=True)  # killed between the journal's line and this
    return there
