"""One job's arithmetic, part by part: tensors in as they are read, merged parts out.

Knows the plan, and a method as a Fold or a Joint; not where tensors come from, nor where results go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from dopkit.checkpoints import Checkpoint
from dopkit.checkpoints.reading import torch_dtype
from dopkit.device import Devices
from dopkit.engine import scaling
from dopkit.engine.blame import Input, explained
from dopkit.engine.companions import Companions, check
from dopkit.engine.scaling import scaled, squares
from dopkit.errors import MergeError
from dopkit.methods.fold import Context, Fold, Joint
from dopkit.planning import Plan, TensorJob
from dopkit.planning.outputs import state_name
from dopkit.short_names import told_apart

Record = dict[str, Any]
Merged = tuple[int, torch.Tensor | None, torch.Tensor]  # after which step, the base, the result before scale and cast


def device_of(job: TensorJob, devices: Devices) -> torch.device:
    """Where a job is merged."""
    return devices.place(job.working_bytes, float64=job.rule.float64 or job.dtype == "F64")


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
        self._state: Any = None
        self.steps: list[Record] = []  # what the method has measured
        # The sums of squares of the task vectors, where there are to be some.
        self.tasks = [0.0] * (len(inputs.models) - (1 if self._plan.continues else 0))
        self.measures = False

    def merged(self, index: int, rows: tuple[int, int], wanted: Iterable[int]) -> Iterator[Merged]:
        """The results of one part after the ``wanted`` steps, of which the last is one; see ``finished``.

        ``index`` counts the parts. A result must be used before the next one is asked for. Raises MergeError.
        """
        if self._fold is not None:
            yield from self._folded(self._fold, index, rows, set(wanted))
        elif self._joint is not None:
            yield from self._at_once(self._joint, index, rows, sorted(wanted))
        else:
            tensor = self._following()
            for step in sorted(wanted):
                yield step, None, tensor

    def finished(self, base: torch.Tensor | None, merged: torch.Tensor) -> torch.Tensor:
        """A result as it is written: scaled by what is known beforehand, and cast once."""
        scale = scaling.number(self._plan)
        if scale != 1 and base is not None:
            merged = scaled(base, merged, scale)
        return merged.to("cpu", torch_dtype(self._job.dtype))

    def packed(self) -> dict[str, torch.Tensor]:
        """The state of the fold after the last part that was merged."""
        assert self._fold is not None
        return self._fold.pack(self._state)

    def _contexts(self, index: int, rows: tuple[int, int]) -> Iterator[Context]:
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
                offset=rows[0] * (job.numel // max(1, job.rows)),
            )

    def _at_once(self, joint: Joint, index: int, rows: tuple[int, int], wanted: Sequence[int]) -> Iterator[Merged]:
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

    def _folded(self, fold: Fold, index: int, rows: tuple[int, int], wanted: set[int]) -> Iterator[Merged]:
        """One part of the tensor, folded over all models."""
        self._state = None
        base = self._up(self._following()) if self._job.base is not None else None
        first = self._plan.first_step
        # What a slice of layers is merged from may be fewer models than there are: its last one is the last step.
        skipped = self._plan.last_step - first - len(self._job.inputs) + 1
        for context in self._contexts(index, rows):
            try:
                if context.step == first:
                    self._state = self._begin(fold, base, context)
                else:
                    self._state = fold.step(self._state, self._next_model(base, context.step), self._beside(context))
            except MergeError as error:
                raise self._explained(error) from error
            if (step := context.step + skipped) in wanted:
                yield step, base, fold.finish(self._state, context)

    def _begin(self, fold: Fold, base: torch.Tensor | None, context: Context) -> Any:
        """The state after the first model, or after all that were merged before."""
        continues = self._plan.continues
        if continues is None:
            return fold.start(base, self._next_model(base, context.step), self._beside(context))
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

    def _next_model(self, base: torch.Tensor | None, step: int) -> torch.Tensor:
        model = self._up(self._following())
        if self.measures:
            assert base is not None, "what is scaled has a base"
            self.tasks[step - self._plan.last_step - 1] += squares(base, model)  # counted from the last one
        return model

    def _beside(self, context: Context) -> Context:
        """The context with what is read beside the model."""
        companions, rule = self._inputs.companions, self._job.rule
        if not rule.companions:
            return context
        one = self._job.inputs[context.step - self._plan.first_step]
        beside = zip(rule.companions, companions.of(self._job, one), strict=True)
        tensors = {part: self._up(check(*source, self._following())) for part, source in beside}
        return replace(context, companions=tensors, sizes=companions.size(one))

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
