"""A worker on a cluster: opens the merge once, then does batches of its jobs and reports what it has made.

Writes into the working folder where it finds that, else hands the bytes over. Knows no cluster: whoever hires it calls
``greet`` once and ``report`` again and again.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from dopkit import __version__, hub
from dopkit.cluster.messages import Batch, Began, Done, Failure, Greeting, Journaled, Over, Said
from dopkit.cluster.outbox import Entry, Ledger, Outbox, PostedFile
from dopkit.device import choose
from dopkit.engine.companions import Sizes
from dopkit.errors import DopkitError
from dopkit.helping import engine_of, outputs_of, scaling_by
from dopkit.layout import Shard
from dopkit.limits import MemoryLimit
from dopkit.planning.building import Wanted
from dopkit.planning.room import Room
from dopkit.preparing import Prepared
from dopkit.progress import Progress
from dopkit.recipe import Recipe
from dopkit.sources import open_sources
from dopkit.writer import OutputFolder, TensorWriter

_ELSEWHERE = 1 << 62  # bytes of disk that are none of the worker's business


@dataclass(frozen=True)
class Order:
    """A merge, for those who are to help with it."""

    recipe: Recipe  # pinned, its order drawn
    folder: Path  # the working folder, absolute
    token: str  # name of a file there, and what it holds: who reads it shares the folder
    wanted: Wanted
    device: str
    threads: int
    memory: int  # bytes that the worker may use, beside what it holds to begin with
    limit: MemoryLimit  # of its device
    max_shard_size: int
    stream: bool
    sizes: Sizes  # of what is read beside the models


class Hired:
    """One worker. A job runs in a thread of its own, so that its bytes can be taken while it runs."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._outbox = Outbox()
        self._stack = ExitStack()
        self._writers: list[TensorWriter] = []
        self._finished: list[Entry] = []  # of the batch, written and not yet told
        self._thread: threading.Thread | None = None
        self._bug: BaseException | None = None

    def greet(self) -> Greeting:
        """Open the models and plan their merge."""
        try:
            return self._open()
        except DopkitError as error:
            return Greeting(error=Failure.of(error))

    def report(self, batch: Batch | None = None) -> list[Said]:
        """Begin a batch, if there is one, and tell what was done since; waits until something was."""
        if batch is not None:
            self._thread = threading.Thread(target=self._work, args=(batch,), name="dopkit-batch", daemon=True)
            self._thread.start()
        said = self._outbox.take()
        if self._bug is not None:
            raise self._bug
        return said

    def _open(self) -> Greeting:
        order = self._order
        torch.set_num_threads(order.threads)
        devices = choose(order.device, limit=order.limit).among(1 + len(order.recipe.stages))
        cache = hub.cache_disk(Path.cwd())[0]

        def room(program: int) -> Room:
            return Room(
                _ELSEWHERE,
                cache,
                program + order.memory,
                memory_given=True,
                program=program,
                device=devices.own_bytes,
                device_float64=devices.has_float64,
            )

        sources = self._stack.enter_context(
            open_sources(
                order.recipe,
                room,
                Progress(),
                order.max_shard_size,
                devices,
                stream=order.stream,
                download=True,
                wanted=order.wanted,
            )
        )
        for checkpoint in sources.read:
            checkpoint.fetch()
        output = OutputFolder(order.folder.with_name(order.folder.name.removesuffix(".partial")))
        self._prepared = prepared = Prepared(order.recipe, sources, devices, output, loads={})
        self._shares = _holds(order.folder / order.token, order.token)
        self._ledger = Ledger(self._keep if self._shares else self._tell)
        self._outputs = outputs_of(prepared.plan, self._open_writer)
        self._engine = engine_of(prepared, self._outputs, _Telling(self._outbox), order.sizes)
        return Greeting(self._shares, devices.engine, prepared.fingerprint, __version__)

    def _open_writer(self, place: str, shards: Sequence[Shard]) -> TensorWriter:
        folder = self._order.folder
        if self._shares:
            writer = TensorWriter(folder, shards, self._ledger, place)
        else:
            kind = partial(PostedFile, place=place, outbox=self._outbox)
            writer = TensorWriter(folder, shards, self._ledger, place, kind)
        self._writers.append(writer)
        return writer

    def _keep(self, entry: Entry) -> None:
        self._finished.append(entry)

    def _tell(self, entry: Entry) -> None:
        self._outbox.put(Journaled(entry))

    def _work(self, batch: Batch) -> None:
        torch.set_num_threads(self._order.threads)  # OpenMP keeps the number for each thread
        failure = None
        try:
            self._do(batch)
        except DopkitError as error:
            failure = Failure.of(error)
        except BaseException as error:
            self._bug = error
        try:
            for writer in self._writers:
                writer.close()  # others see on a network's file system what was closed
        except DopkitError as error:
            failure = failure or Failure.of(error)
        else:
            for entry in self._finished:
                self._outbox.put(Journaled(entry))
            self._finished = []
        self._outbox.put(Over(failure))

    def _do(self, batch: Batch) -> None:
        prepared = self._prepared
        jobs = [prepared.plan.by_name[name] for name in batch.jobs]
        if batch.message is None:
            self._engine.run(jobs)
            return
        norms, recorded = batch.message
        self._ledger.know(recorded)
        scaling_by(self._outputs, prepared.sources, self._order.folder, _Telling(self._outbox), norms)(jobs)


class _Telling(Progress):
    """Tells of the tensors that are begun and done."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    def tensor(self, name: str) -> None:
        self._outbox.put(Began(name))

    def tensor_done(self, name: str) -> None:
        self._outbox.put(Done(name))


def _holds(file: Path, text: str) -> bool:
    try:
        return file.read_text() == text
    except OSError:
        return False
