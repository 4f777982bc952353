"""The loop: tensor outside, model inside. Reads, folds, casts once, writes.

Knows the plan, the sources and the writers; a method only as a Fold or a Joint. Runs in one process on one device, with
the CPU for what does not fit there.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from dopkit.checkpoints import Checkpoint
from dopkit.checkpoints.reading import torch_dtype
from dopkit.device import Devices
from dopkit.engine import scaling
from dopkit.engine.announcing import Read, announce, requests
from dopkit.engine.blame import Input, check_finite, explained
from dopkit.engine.companions import Companions, check
from dopkit.engine.outputs import Outputs, Sink
from dopkit.engine.pipes import ReadAhead, WriteBehind
from dopkit.engine.scaling import scaled, squares
from dopkit.errors import MergeError
from dopkit.measure import peak_resident_bytes
from dopkit.methods.fold import Context, Fold, Joint
from dopkit.planning import Plan, TensorJob
from dopkit.planning.building import READ_AHEAD_BYTES, WRITE_BEHIND_BYTES
from dopkit.planning.outputs import state_name
from dopkit.progress import Progress
from dopkit.short_names import told_apart

Record = dict[str, Any]


class Engine:
    """Runs the jobs of one plan whose results the writers do not have yet.

    ``state`` holds the state of the folds that the merge goes on from, if the plan reads it.
    """

    def __init__(
        self,
        plan: Plan,
        donor: Checkpoint,
        models: Sequence[Checkpoint],
        outputs: Outputs,
        devices: Devices,
        progress: Progress,
        state: Checkpoint | None = None,
        companions: Companions | None = None,
    ) -> None:
        self._plan = plan
        self._donor = donor
        self._models = models
        self._outputs = outputs
        self._devices = devices
        self._progress = progress
        self._state = state
        self._companions = companions or Companions()
        self._model_names = told_apart([source.ref.name for source in plan.merged_models])

    def run(self) -> None:
        """Fold every tensor. Raises MergeError, OutputError, CheckpointError; what is done stays journaled."""
        jobs = self._outputs.to_fold()
        self._progress.begin(len(jobs), sum(job.nbytes for job in jobs), sum(job.effort for job in jobs))
        announce(self._reads(jobs), self._plan.stream_bytes)
        ahead = ReadAhead(requests(self._reads(jobs)), READ_AHEAD_BYTES)
        behind = WriteBehind(WRITE_BEHIND_BYTES)
        try:
            for job in jobs:
                self._progress.tensor(job.name)
                _Work(self, job, ahead, behind).run()
        except BaseException:
            # What was handed over is good and worth keeping; the error in hand is the one to tell.
            _quietly_close(behind)
            beside = [checkpoint for own in self._companions.checkpoints for checkpoint in own.values()]
            for checkpoint in (self._donor, *self._models, *beside):
                checkpoint.close()  # a read under way must not hold us up
            raise
        else:
            behind.close()
        finally:
            ahead.close()

    def _reads(self, jobs: Iterable[TensorJob]) -> Iterator[Read]:
        """All that is read, in order; no rows means the whole tensor."""
        for job in jobs:
            for rows in job.parts():
                for checkpoint, name in self._inputs(job):
                    yield checkpoint, name, None if job.part_rows >= job.rows else rows

    def _inputs(self, job: TensorJob) -> Iterator[Input]:
        """What is read for each part of a job, in this order."""
        if job.base is not None:
            yield self._donor, job.base
        if job.rule.fold is not None:
            for part in self._packed(job):
                assert self._state is not None
                yield self._state, state_name(job, part)
            for one in job.inputs[1:] if self._packed(job) else job.inputs:
                yield self._models[one.model], one.name
                yield from self._companions.of(job, one)

    def _packed(self, job: TensorJob) -> list[str]:
        """The tensors of the state that the job's fold goes on from; none when it begins with a model."""
        return [] if self._state is None else list(job.rule.state(job.part_shape))

    def _complete(self, job: TensorJob, record: Record) -> None:
        if self._outputs.state is not None:
            for name in self._outputs.state_names(job):
                self._outputs.state.complete(name, {})
        for step, writer in self._outputs.folded(job).items():
            writer.complete(job.name, record if step == self._plan.last_step else {})
        self._progress.tensor_done(job.name)


class _Work:
    """One job in hand."""

    def __init__(self, engine: Engine, job: TensorJob, ahead: ReadAhead, behind: WriteBehind) -> None:
        self._engine, self._job, self._ahead, self._behind = engine, job, ahead, behind
        self._plan, self._outputs = engine._plan, engine._outputs
        self._device = engine._devices.place(job.working_bytes, float64=job.rule.float64 or job.dtype == "F64")
        self._working = torch_dtype(job.working_dtype)  # float32 throughout, whatever the inputs
        self._sink = Sink(behind)
        self._steps: list[Record] = []
        self._waits = self._outputs.waits(job)
        self._tasks = [0.0] * (len(engine._models) - (1 if self._plan.continues else 0))
        self._merged = dict.fromkeys(self._outputs.models, 0.0)

    def run(self) -> None:
        started, job = time.monotonic(), self._job
        joint = job.rule.load_joint() if job.rule.joint else None
        fold = job.rule.load() if job.rule.fold and joint is None else None
        for index, rows in enumerate(job.parts()):
            if fold is not None:
                self._fold(fold, index, rows)
            elif joint is not None:
                self._join(joint, index, rows)
            else:
                self._copy(next(self._ahead))
            share = (rows[1] - rows[0]) / job.rows
            self._engine._progress.advance(int(job.nbytes * share), job.effort * share)
        record: Record = {
            "rule": job.rule.name,
            "device": self._device.type,
            "seconds": round(time.monotonic() - started, 4),
            "peak": peak_resident_bytes(),
        }
        if self._steps:
            record["steps"] = self._steps
        if self._waits:
            record |= {scaling.TASKS: self._tasks, scaling.MERGED: list(self._merged.values())}
        self._behind.put(0, partial(self._engine._complete, job, record))

    def _copy(self, tensor: torch.Tensor) -> None:
        tensor = tensor.to(torch_dtype(self._job.dtype))
        check_finite(self._job, tensor, self._engine._inputs(self._job))
        for writer in self._outputs.models.values():
            self._sink.put(writer, self._job.name, tensor)

    def _contexts(self, index: int, rows: tuple[int, int]) -> Iterator[Context]:
        """What the method may know at each step, for one part of the tensor."""
        engine, job, before = self._engine, self._job, self._plan.first_step - 1
        for step, (one, own) in enumerate(zip(job.inputs, job.parameters, strict=True), start=before + 1):
            yield Context(
                own,
                job.role,
                step,
                self._recorder(index),
                models=job.all_parameters[:step],
                seed=self._plan.recipe.seed or 0,
                tensor=job.canonical,
                model=engine._model_names[before + one.model],
                offset=rows[0] * (job.numel // max(1, job.rows)),
            )

    def _join(self, joint: Joint, index: int, rows: tuple[int, int]) -> None:
        """One part of the tensor, of all models at once; with earlier steps wanted, of the first so many as well."""
        base = self._up(next(self._ahead)) if self._job.base is not None else None
        contexts = list(self._contexts(index, rows))
        tensors = [self._next_model(base, context.step) for context in contexts]
        for step in sorted(self._outputs.models):
            number = len(tensors) - (self._plan.last_step - step)
            try:
                merged = joint.merge(base, tensors[:number], contexts[:number])
            except MergeError as error:
                raise explained(self._job, self._engine._inputs(self._job), error) from error
            self._write(step, base, merged)

    def _fold(self, fold: Fold, index: int, rows: tuple[int, int]) -> None:
        """One part of the tensor, folded over all models; what is to be written goes on its way."""
        base = self._up(next(self._ahead)) if self._job.base is not None else None
        state: Any = None
        first = self._plan.first_step
        # What a slice of layers is merged from may be fewer models than there are: its last one is the last step.
        skipped = self._plan.last_step - first - len(self._job.inputs) + 1
        for context in self._contexts(index, rows):
            try:
                if context.step == first:
                    state = self._begin(fold, base, context)
                else:
                    state = fold.step(state, self._next_model(base, context.step), self._beside(context))
            except MergeError as error:
                raise explained(self._job, self._engine._inputs(self._job), error) from error
            if (step := context.step + skipped) in self._outputs.models:
                self._write(step, base, fold.finish(state, context))
        if self._outputs.state is not None:
            for part, tensor in fold.pack(state).items():
                self._sink.put(self._outputs.state, state_name(self._job, part), tensor.to("cpu"))

    def _begin(self, fold: Fold, base: torch.Tensor | None, context: Context) -> Any:
        """The state after the first model, or after all that were merged before."""
        continues = self._plan.continues
        if continues is None:
            return fold.start(base, self._next_model(base, context.step), self._beside(context))
        if parts := self._engine._packed(self._job):
            packed = {part: next(self._ahead).to(self._device) for part in parts}
            if not all(bool(torch.isfinite(tensor).all()) for tensor in packed.values()):
                raise MergeError("the kept state is not finite")
            return fold.unpack(base, {part: self._slice(tensor) for part, tensor in packed.items()}, context)
        merged = self._up(next(self._ahead))
        if base is not None and continues.scale != 1:
            merged = scaled(base, merged, 1 / continues.scale)
        if self._job.rule.from_merged(self._job.part_shape):
            return fold.unpack(base, {"merged": merged}, context)
        return fold.start(base, merged, context)  # what was merged stands for one model

    def _next_model(self, base: torch.Tensor | None, step: int) -> torch.Tensor:
        model = self._up(next(self._ahead))
        if self._waits:
            assert base is not None, "what is scaled has a base"
            self._tasks[step - self._plan.last_step - 1] += squares(base, model)  # counted from the last one
        return model

    def _beside(self, context: Context) -> Context:
        """The context with what is read beside the model."""
        engine, rule = self._engine, self._job.rule
        if not rule.companions:
            return context
        one = self._job.inputs[context.step - self._plan.first_step]
        beside = zip(rule.companions, engine._companions.of(self._job, one), strict=True)
        tensors = {part: self._up(check(*source, next(self._ahead))) for part, source in beside}
        return replace(context, companions=tensors, sizes=engine._companions.size(one))

    def _write(self, step: int, base: torch.Tensor | None, merged: torch.Tensor) -> None:
        """The result after a step, scaled if that can be done now."""
        if self._waits:
            assert base is not None, "what is scaled has a base"
            self._merged[step] += squares(base, merged)
            result = merged.to("cpu")
        else:
            scale = scaling.number(self._plan)
            if scale != 1 and base is not None:
                merged = scaled(base, merged, scale)
            result = merged.to("cpu", torch_dtype(self._job.dtype))  # the one cast
        check_finite(self._job, result, self._engine._inputs(self._job))
        if step != self._plan.last_step and result.data_ptr() == merged.data_ptr():
            result = result.clone()  # the next step may overwrite the state while this is being written
        self._sink.put(self._outputs.folded(self._job)[step], self._job.name, result)

    def _up(self, raw: torch.Tensor) -> torch.Tensor:
        return self._slice(raw.to(device=self._device, dtype=self._working))

    def _slice(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor[0] if self._job.slices else tensor

    def _recorder(self, index: int) -> Any:
        def record(numbers: Record) -> None:
            self._steps.append({"slice": index, **numbers} if self._job.slices else numbers)

        return record


def _quietly_close(behind: WriteBehind) -> None:
    try:
        behind.close()
    except BaseException:
        return
