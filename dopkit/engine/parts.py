"""One job's arithmetic, part by part: tensors in as they are read, merged parts out.

Knows the plan, and a method as a Fold or a Joint; not where tensors come from, nor where results go.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from dopkit.checkpoints import Checkpoint
from dopkit.checkpoints.reading import torch_dtype
from dopkit.device import Devices
from dopkit.engine import scaling
from dopkit.engine.blame import Input, check_finite, explained
from dopkit.engine.companions import Companions, check
from dopkit.engine.scaling import scaled, squares
from dopkit.errors import MergeError
from dopkit.linalg.magnitude import CACHED
from dopkit.methods import FLOAT32, Cut
from dopkit.methods.fold import Context, Fold, Joint
from dopkit.planning import Input as PlannedInput
from dopkit.planning import Plan, TensorJob
from dopkit.planning.outputs import state_name
from dopkit.short_names import told_apart

Record = dict[str, Any]
Rows = tuple[int, int]
MANY_BYTES = 64_000_000  # of all models' parts, in float32
Merged = tuple[int, torch.Tensor | None, torch.Tensor]  # after which step, the base, the result before scale and cast


def device_of(job: TensorJob, devices: Devices) -> torch.device:
    """Where a job is merged."""
    return devices.place(job.working_bytes, float64=job.rule.float64 or job.dtype == "F64")


Come = tuple[torch.Tensor, Mapping[str, torch.Tensor]]  # a model's part as it was read, and what lies beside it


class Inputs:
    """What is read for the jobs of one plan, in this order. ``state`` is that of folds which the merge goes on from."""

    def __init__(
        self,
        plan: Plan,
        donor: Checkpoint,
        models: Sequence[Checkpoint],
        state: Checkpoint | None = None,
        companions: Companions | None = None,
    ) -> None:
        self.plan, self.donor, self.models, self.state = plan, donor, models, state
        self.companions = companions or Companions()
        self.names = told_apart([source.ref.name for source in plan.merged_models])

    def of(self, job: TensorJob) -> Iterator[Input]:
        """The tensors that each part of a job needs."""
        if job.base is not None:
            yield self.donor, job.base
        if job.rule.fold is not None:
            for part in self.packed(job):
                assert self.state is not None
                yield self.state, state_name(job, part)
            for one in job.inputs[1:] if self.packed(job) else job.inputs:
                yield self.models[one.model], one.name
                yield from self.companions.of(job, one)

    def packed(self, job: TensorJob) -> list[str]:
        """The tensors of the state that the job's fold goes on from; none when it begins with a model."""
        return [] if self.state is None else list(job.rule.state(job.part_shape))


class Parts:
    """Merges the parts of one job on ``device``. ``following`` gives what ``inputs`` lists, part after part."""

    def __init__(
        self, inputs: Inputs, job: TensorJob, device: torch.device, following: Callable[[], torch.Tensor]
    ) -> None:
        self._inputs, self._job, self._device, self._following = inputs, job, device, following
        self._plan = inputs.plan
        self._working = torch_dtype(job.working_dtype)  # float32 throughout, whatever the inputs
        self._joint = job.rule.load_joint() if job.rule.joint else None
        self._fold = job.rule.load() if job.rule.fold and self._joint is None else None
        self._dtype = torch_dtype(job.dtype)
        self._scale, self._draws = scaling.number(self._plan), self._plan.recipe.method.random
        self._state: Any = None
        self.steps: list[Record] = []  # what the method has measured
        # The sums of squares of the task vectors, where there are to be some.
        self.tasks = [0.0] * (len(inputs.models) - (1 if self._plan.continues else 0))
        self.measures = False

    def results(self, index: int, rows: Rows, wanted: Iterable[int]) -> Iterator[tuple[int, torch.Tensor]]:
        """One part after each of the ``wanted`` steps as it is written: scaled by what is known beforehand, cast once,
        finite, on the CPU. It does not change any more.

        ``index`` counts the parts; the last step is one of ``wanted``. Raises MergeError.
        """
        cuts = self._cuts(rows)
        results: dict[int, torch.Tensor] = {}
        for step, cut, base, merged in self._merged(index, rows, cuts, wanted):
            merged = self._scaled(base, merged)
            if len(cuts) == 1:
                result = merged.to("cpu", self._dtype)
                # the next step may overwrite the state while this is being written
                kept = step == self._plan.last_step or result.data_ptr() != merged.data_ptr()
                results[step] = part = result if kept else result.clone()
            else:
                whole = results.get(step)
                if whole is None:
                    shape = (rows[1] - rows[0], *merged.shape[1:])
                    whole = results[step] = torch.empty(shape, dtype=self._dtype)
                part = whole[cut[0] - rows[0] : cut[1] - rows[0]].copy_(merged)
            check_finite(self._job, part, self._inputs.of(self._job))
            if cut[1] == rows[1]:
                yield step, results.pop(step)

    def merged(self, index: int, rows: Rows, wanted: Iterable[int]) -> Iterator[Merged]:
        """The same before scale and cast. A result must be used before the next one is asked for."""
        for step, _, base, merged in self._merged(index, rows, [rows], wanted):
            yield step, base, merged

    def _merged(
        self, index: int, rows: Rows, cuts: Sequence[Rows], wanted: Iterable[int]
    ) -> Iterator[tuple[int, Rows, torch.Tensor | None, torch.Tensor]]:
        """Step, rows, base and result, in each step one of the ``cuts`` after the other."""
        if self._fold is not None:
            yield from self._folded(self._fold, index, rows, cuts, set(wanted))
        elif self._joint is not None:
            for step, base, merged in self._at_once(self._joint, index, rows, sorted(wanted)):
                yield step, rows, base, merged
        else:
            tensor = self._following()
            for step in sorted(wanted):
                yield step, rows, None, tensor

    def _cuts(self, rows: Rows) -> list[Rows]:
        """What is merged element by element is cut once more, to stay in a core's cache from the first operation to the
        last. That takes all models at once, as they are read: of many of them it is not done."""
        job, by_elements = self._job, self._fold is not None and self._job.rule.cut is Cut.BLOCKS
        many = (1 + len(job.inputs) * (1 + len(job.rule.companions))) * FLOAT32 * math.prod(job.part_shape) > MANY_BYTES
        if not by_elements or many or self._device.type != "cpu" or self._plan.keeps_state or self._plan.continues:
            return [rows]
        step = max(1, CACHED // max(1, job.numel // max(1, job.rows)))
        return [(start, min(rows[1], start + step)) for start in range(*rows, step)]

    def _scaled(self, base: torch.Tensor | None, merged: torch.Tensor) -> torch.Tensor:
        return merged if self._scale == 1 or base is None else scaled(base, merged, self._scale)

    def packed(self) -> dict[str, torch.Tensor]:
        """The state of the fold after the last part that was merged."""
        assert self._fold is not None
        return self._fold.pack(self._state)

    def _contexts(self, index: int, rows: Rows) -> Iterator[Context]:
        """What the method may know at each step, for one part of the tensor."""
        job, before = self._job, self._plan.first_step - 1
        for step, (one, own) in enumerate(zip(job.inputs, job.parameters, strict=True), start=before + 1):
            yield Context(
                own,
                job.role,
                step,
                self._recorder(index),
                models=job.all_parameters[:step],
                seed=self._plan.recipe.seed or 0,
                tensor=job.canonical,
                model=self._inputs.names[before + one.model],
                offset=self._offset(rows),
            )

    def _at_once(self, joint: Joint, index: int, rows: Rows, wanted: Sequence[int]) -> Iterator[Merged]:
        """One part of the tensor, of all models at once; with earlier steps wanted, of the first so many as well."""
        base = self._up(self._following()) if self._job.base is not None else None
        contexts = list(self._contexts(index, rows))
        tensors = [self._next_model(base, context.step) for context in contexts]
        for step in wanted:
            number = len(tensors) - (self._plan.last_step - step)
            try:
                merged = joint.merge(base, tensors[:number], contexts[:number])
            except MergeError as error:
                raise self._explained(error) from error
            yield step, base, merged

    def _folded(
        self, fold: Fold, index: int, rows: Rows, cuts: Sequence[Rows], wanted: set[int]
    ) -> Iterator[tuple[int, Rows, torch.Tensor | None, torch.Tensor]]:
        """One part of the tensor, folded over all models."""
        raw = self._following() if self._job.base is not None else None
        contexts = list(self._contexts(index, rows))
        first = self._plan.first_step
        # What a slice of layers is merged from may be fewer models than there are: its last one is the last step.
        skipped = self._plan.last_step - first - len(self._job.inputs) + 1
        come: dict[int, Come] = {}  # by step; kept for the next cut, where there is one
        for cut in cuts:
            base = self._up(self._part(raw, rows, cut)) if raw is not None else None
            self._state = None
            for context in contexts:
                own = replace(context, offset=self._offset(cut)) if self._draws and cut != rows else context
                begins = context.step == first and self._plan.continues is not None
                if not begins and context.step not in come:
                    come[context.step] = self._come(context)
                try:
                    if begins:
                        self._state = self._begin(fold, base, own)
                    else:
                        took = come[own.step] if len(cuts) > 1 else come.pop(own.step)
                        self._state = self._step(fold, self._state, base, took, rows, cut, own)
                except MergeError as error:
                    raise self._explained(error) from error
                if (step := context.step + skipped) in wanted:
                    yield step, cut, base, fold.finish(self._state, own)

    def _come(self, context: Context) -> Come:
        model = self._following()
        if not (companions := self._job.rule.companions):
            return model, {}
        own = self._inputs.companions.of(self._job, self._input(context))
        return model, {part: check(*source, self._following()) for part, source in zip(companions, own, strict=True)}

    def _step(
        self,
        fold: Fold,
        state: Any,
        base: torch.Tensor | None,
        come: Come,
        rows: Rows,
        cut: Rows,
        context: Context,
    ) -> Any:
        """The state after one more model, of which ``come`` was read."""
        raw, beside = come
        model = self._up(self._part(raw, rows, cut))
        if self.measures:
            self._measure(base, model, context.step)
        if beside:
            companions = {part: self._up(self._part(tensor, rows, cut)) for part, tensor in beside.items()}
            sizes = self._inputs.companions.size(self._input(context))
            context = replace(context, companions=companions, sizes=sizes)
        if context.step == self._plan.first_step:
            return fold.start(base, model, context)
        return fold.step(state, model, context)

    def _input(self, context: Context) -> PlannedInput:
        return self._job.inputs[context.step - self._plan.first_step]

    @staticmethod
    def _part(raw: torch.Tensor, rows: Rows, cut: Rows) -> torch.Tensor:
        return raw if cut == rows else raw[cut[0] - rows[0] : cut[1] - rows[0]]

    def _offset(self, rows: Rows) -> int:
        return rows[0] * (self._job.numel // max(1, self._job.rows))

    def _begin(self, fold: Fold, base: torch.Tensor | None, context: Context) -> Any:
        """The state after all models that were merged before."""
        continues = self._plan.continues
        assert continues is not None
        if parts := self._inputs.packed(self._job):
            packed = {part: self._following().to(self._device) for part in parts}
            if not all(bool(torch.isfinite(tensor).all()) for tensor in packed.values()):
                raise MergeError("the kept state is not finite")
            return fold.unpack(base, {part: self._slice(tensor) for part, tensor in packed.items()}, context)
        merged = self._up(self._following())
        if base is not None and continues.scale != 1:
            merged = scaled(base, merged, 1 / continues.scale)
        if self._job.rule.from_merged(self._job.part_shape):
            return fold.unpack(base, {"merged": merged}, context)
        return fold.start(base, merged, context)  # what was merged stands for one model

    def _measure(self, base: torch.Tensor | None, model: torch.Tensor, step: int) -> None:
        assert base is not None, "what is scaled has a base"
        self.tasks[step - self._plan.last_step - 1] += squares(base, model)  # counted from the last one

    def _next_model(self, base: torch.Tensor | None, step: int) -> torch.Tensor:
        model = self._up(self._following())
        if self.measures:
            self._measure(base, model, step)
        return model

    def _up(self, raw: torch.Tensor) -> torch.Tensor:
        return self._slice(raw.to(device=self._device, dtype=self._working))

    def _slice(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor[0] if self._job.slices else tensor

    def _explained(self, error: MergeError) -> MergeError:
        return explained(self._job, self._inputs.of(self._job), error)

    def _recorder(self, index: int) -> Callable[[Record], None]:
        def record(numbers: Record) -> None:
            self.steps.append({"slice": index, **numbers} if self._job.slices else numbers)

        return record
