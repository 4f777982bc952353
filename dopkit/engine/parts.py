"""One job's arithmetic, part by part: tensors in as they are read, merged parts out.

Knows the plan, and a method as a Fold or a Joint; not where tensors come from, nor where results go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from dopkit.checkpoints.reading import torch_dtype
from dopkit.engine import cutting, scaling
from dopkit.engine.blame import check_finite, explained
from dopkit.engine.companions import check
from dopkit.engine.inputs import Inputs
from dopkit.engine.moving import Mover
from dopkit.engine.parking import movable
from dopkit.engine.scaling import scaled, squares
from dopkit.errors import MergeError
from dopkit.linalg.parking import KEPT, Park
from dopkit.methods.fold import Context, Fold, Joint, Surveying
from dopkit.planning import Input as PlannedInput
from dopkit.planning import TensorJob

Record = dict[str, Any]
Rows = tuple[int, int]
Merged = tuple[int, torch.Tensor | None, torch.Tensor]  # after which step, the base, the result before scale and cast


Come = tuple[torch.Tensor, Mapping[str, torch.Tensor]]  # a model's part as it was read, and what lies beside it


class Parts:
    """Merges the parts of one job on ``device``. ``following`` gives what ``inputs`` lists, part after part.

    With a ``park`` what the fold does not need at the moment is away.
    """

    def __init__(
        self,
        inputs: Inputs,
        job: TensorJob,
        device: torch.device,
        following: Callable[[], torch.Tensor],
        park: Park | None = None,
    ) -> None:
        self._inputs, self._job, self._device = inputs, job, device
        self._park = park or KEPT
        self._following: Callable[[], torch.Tensor] = (lambda: movable(following())) if park else following
        self._plan, self._move = inputs.plan, Mover(device)
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
        results: dict[int, torch.Tensor] = {}
        for step, cut, base, merged in self._merged(index, rows, wanted, self._device.type == "cpu"):
            merged = self._scaled(base, merged)
            if cut == rows:
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
        for step, _, base, merged in self._merged(index, rows, wanted, cut=False):
            yield step, base, merged

    def _merged(
        self, index: int, rows: Rows, wanted: Iterable[int], cut: bool
    ) -> Iterator[tuple[int, Rows, torch.Tensor | None, torch.Tensor]]:
        """Step, rows, base and result; in each step one cut after the other, where it may and can be cut."""
        if self._fold is not None:
            yield from self._folded(self._fold, index, rows, set(wanted), cut)
        elif self._joint is not None:
            for step, base, merged in self._at_once(self._joint, index, rows, sorted(wanted)):
                yield step, rows, base, merged
        else:
            tensor = self._following()
            for step in sorted(wanted):
                yield step, rows, None, tensor

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
                park=self._park,
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
        self, fold: Fold, index: int, rows: Rows, wanted: set[int], cut: bool
    ) -> Iterator[tuple[int, Rows, torch.Tensor | None, torch.Tensor]]:
        """One part of the tensor, folded over all models."""
        raw = self._following() if self._job.base is not None else None
        contexts = list(self._contexts(index, rows))
        first = self._plan.first_step
        # What a slice of layers is merged from may be fewer models than there are: its last one is the last step.
        skipped = self._plan.last_step - first - len(self._job.inputs) + 1
        come: dict[int, Come] = {}  # by step; kept for the next cut, where there is one
        cuts = [rows]
        if cut and cutting.by_elements(self._plan, self._job):
            cuts = cutting.cuts(self._job, rows)
        elif cut and (surveys := self._surveys(fold, raw, contexts, come)):
            contexts = [replace(context, survey=surveys[context.step]) for context in contexts]
            cuts = cutting.cuts(self._job, rows)
        for piece in cuts:
            base = self._up(self._part(raw, rows, piece)) if raw is not None else None
            self._state = None
            for context in contexts:
                own = replace(context, offset=self._offset(piece)) if self._draws and piece != rows else context
                begins = context.step == first and self._plan.continues is not None
                if not begins and context.step not in come:
                    come[context.step] = self._come(context)
                try:
                    if begins:
                        self._state = self._begin(fold, base, own)
                    else:
                        took = come[own.step] if len(cuts) > 1 else come.pop(own.step)
                        self._state = self._step(fold, self._state, base, took, rows, piece, own)
                except MergeError as error:
                    raise self._explained(error) from error
                if (step := context.step + skipped) in wanted:
                    yield step, piece, base, fold.finish(self._state, own)

    def _surveys(
        self, fold: Fold, base: torch.Tensor | None, contexts: Sequence[Context], come: dict[int, Come]
    ) -> dict[int, Any]:
        """What the fold must know of the models to merge this tensor cut by cut; nothing where it is merged whole."""
        checkpoints = self._inputs.of(self._job)
        raw_bytes = sum(checkpoint.specs[name].nbytes for checkpoint, name in checkpoints)
        if not isinstance(fold, Surveying) or base is None or not cutting.surveyed(self._plan, self._job, raw_bytes):
            return {}
        found = {}
        for context in contexts:
            come[context.step] = self._come(context)
            survey = fold.survey(cutting.WholeTensor(self._job, base, come[context.step][0]), context)
            if survey is None:
                return {}
            found[context.step] = survey
        return found

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
        return self._slice(self._move(raw, self._working))

    def _slice(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor[0] if self._job.slices else tensor

    def _explained(self, error: MergeError) -> MergeError:
        return explained(self._job, self._inputs.of(self._job), error)

    def _recorder(self, index: int) -> Callable[[Record], None]:
        def record(numbers: Record) -> None:
            self.steps.append({"slice": index, **numbers} if self._job.slices else numbers)

        return record
