"""A stage as a model: every tensor of it is merged when it is read, by the recipe of the stage.

Nothing of it is on the disk. The bytes are those that the merge would write.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dopkit.checkpoints import Checkpoint
from dopkit.checkpoints.checkpoint import Read
from dopkit.checkpoints.reading import torch_dtype
from dopkit.device import Devices
from dopkit.engine.inputs import Inputs, device_of
from dopkit.engine.parts import Parts
from dopkit.engine.pieces import done_alone
from dopkit.engine.threads import computing_with
from dopkit.errors import MergeError
from dopkit.planning import Staged, TensorJob
from dopkit.refs import ModelRef
from dopkit.specs import TensorSpec

Rows = tuple[int, int]


class StageCheckpoint(Checkpoint):
    """The model that ``staged`` merges of ``donor`` and ``models`` (in merge order), with the ``config`` it gets."""

    remembers = True

    def __init__(
        self,
        name: str,
        staged: Staged,
        donor: Checkpoint,
        models: Sequence[Checkpoint],
        config: Mapping[str, Any] | None,
        devices: Devices,
    ) -> None:
        plan = staged.plan
        specs = {
            tensor.name: TensorSpec(tensor.name, tensor.dtype, tensor.shape, shard.file, tensor.offset)
            for shard in plan.shards
            for tensor in shard.tensors
        }
        super().__init__(ModelRef(name, stage=name), specs, config, donor.side_files, f"merged:{plan.identity}")
        self.staged, self.donor, self.models = staged, donor, models
        self.complete = donor.complete
        self._devices = devices
        self._inputs = Inputs(plan, donor, models)
        self._state = plan.fingerprint(devices.engine)
        self._last: tuple[str, Rows, torch.Tensor] | None = None  # the part that was merged last
        self._lock = threading.Lock()
        self._streamed: StageCheckpoint | None = None
        self._written: Checkpoint | None = None

    @property
    def state(self) -> str:
        return self._state

    @property
    def distinct(self) -> list[Checkpoint]:
        """The models that it reads, each once, the donor first."""
        return list(dict.fromkeys([self.donor, *self.models]))

    @property
    def sources(self) -> tuple[Checkpoint, ...]:
        return tuple(dict.fromkeys(source for checkpoint in self.distinct for source in checkpoint.sources))

    def streamed(self) -> StageCheckpoint:
        if self._streamed is None:
            by_source = {checkpoint: checkpoint.streamed() for checkpoint in self.distinct}
            donor, models = by_source[self.donor], [by_source[model] for model in self.models]
            same = all(one is other for one, other in by_source.items())
            name = self.ref.text
            made = partial(StageCheckpoint, name, self.staged, donor, models, self.config, self._devices)
            self._streamed = self if same else made()
        return self._streamed

    def fetch(self) -> None:
        for checkpoint in self.distinct:
            checkpoint.fetch()

    def read_from(self, written: Checkpoint) -> None:
        """From now on read what is merged already. Closed with the stage."""
        self._written = written
        self.forget()

    def pieces(self, name: str, rows: Rows | None) -> Iterator[Rows | None]:
        if self._written is not None:
            yield rows
        else:
            yield from self._parts(self.staged.plan.by_name[name], *self._checked(name, rows))

    def reads(self, name: str, rows: Rows | None) -> Iterator[Read]:
        """What merging one part reads, or any rows of what is written."""
        if self._written is not None:
            yield self._written, name, rows
            return
        job = self.staged.plan.by_name[name]
        for checkpoint, own in self._inputs.of(job):
            yield checkpoint, own, None if job.part_rows >= job.rows else rows

    def read(self, name: str, rows: Rows | None = None) -> torch.Tensor:
        """As ``Checkpoint.read``; also raises MergeError."""
        if self._written is not None:
            return self._written.read(name, rows)
        spec, job = self.specs[name], self.staged.plan.by_name[name]
        start, stop = self._checked(name, rows)
        result = torch.empty((stop - start, *spec.shape[1:]) if spec.shape else (), dtype=torch_dtype(spec.dtype))
        with self._lock:
            for part in self._parts(job, start, stop) if result.numel() else ():
                merged = self._merged(job, part)
                if not spec.shape:
                    return result.copy_(merged)
                first, last = max(start, part[0]), min(stop, part[1])
                result[first - start : last - start] = merged[first - part[0] : last - part[0]]
        return result

    def _checked(self, name: str, rows: Rows | None) -> Rows:
        spec = self.specs[name]
        start, stop = rows or (0, spec.rows)
        if not 0 <= start <= stop <= spec.rows:
            raise IndexError(f"{name} has {spec.rows} rows; {start} to {stop} was asked for")
        return start, stop

    @staticmethod
    def _parts(job: TensorJob, start: int, stop: int) -> Iterator[Rows]:
        """The parts that hold these rows: always those in which the whole tensor is merged."""
        size = job.part_rows
        return ((row, min(job.rows, row + size)) for row in range(start // size * size, stop, size))

    def _merged(self, job: TensorJob, part: Rows) -> torch.Tensor:
        if self._last is None or self._last[:2] != (job.name, part):
            self._last = None  # before the next one: never two
            self._last = job.name, part, self._merge(job, part)
        return self._last[2]

    def _merge(self, job: TensorJob, part: Rows) -> torch.Tensor:
        inputs = self.reads(job.name, part)
        on_cpu = self._devices.main.type == "cpu"
        cores = torch.get_num_threads() if on_cpu else None

        def following() -> torch.Tensor:
            checkpoint, name, rows = next(inputs)
            with computing_with(cores):
                return checkpoint.read(name, rows)

        parts = Parts(self._inputs, job, device_of(job, self._devices), following)
        # with as many as where the stage is merged by itself: see ``Engine``
        threads = 1 if on_cpu and not done_alone(job) else cores
        try:
            with computing_with(threads):
                ((_, result),) = parts.results(part[0] // job.part_rows, part, [self.staged.plan.last_step])
        except MergeError as error:
            shown = f"stage {self.ref.text}"
            problems = [replace(one, place=": ".join(filter(None, (shown, one.place)))) for one in error.problems]
            raise MergeError(error.headline, problems) from error
        return result.reshape((part[1] - part[0], *job.shape[1:]) if job.shape else ())

    def forget(self) -> None:
        with self._lock:
            self._last = None

    def side_file(self, name: str) -> Path:
        return self.donor.side_file(name)

    def digests(self, name: str) -> frozenset[str]:
        return self.donor.digests(name)

    def close(self) -> None:
        for checkpoint in (*self.distinct, *([self._written] if self._written else [])):
            checkpoint.close()
        self.forget()
