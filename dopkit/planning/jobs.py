"""One tensor's merge: what it is, what is done with it, in which parts, and what that needs. Data, from headers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dopkit.methods import FLOAT32, Cut, Rule
from dopkit.methods.parameters import Parameters
from dopkit.planning.buffers import BLOCK_ELEMENTS
from dopkit.roles import Role
from dopkit.specs import Sized


@dataclass(frozen=True)
class Input:
    """A tensor that goes into a merge."""

    model: int  # its place in the plan's models
    name: str  # in that model's spelling
    companions: tuple[str, ...] = ()  # what is read beside it, in the order of the rule's, each in its file's spelling


@dataclass(frozen=True)
class TensorJob(Sized):
    """One output tensor: what it is, what is done, and where the inputs are."""

    name: str  # as written: the donor's own spelling, or that of the models where they are a tower of it
    canonical: str
    role: Role
    rule: Rule
    dtype: str  # as written
    shape: tuple[int, ...]
    inputs: tuple[Input, ...]  # in merge order; () for a copy
    base: str | None  # in the donor's spelling, when the rule reads it
    donor: str  # in the donor's spelling, whatever the rule
    parameters: tuple[Parameters, ...] = ()  # of the rule's method, for each of the inputs
    earlier: tuple[Parameters, ...] = ()  # for each model that was merged before, when a merge goes on
    block_elements: int = 0  # of a block where it is merged element by element; 0 is the usual number
    parked: bool = False  # what is not needed at the moment lies on the disk, as there is too little memory

    @property
    def all_parameters(self) -> tuple[Parameters, ...]:
        """For every model of the result, in merge order; of those merged before in what they were merged with."""
        return (*self.earlier, *self.parameters[1:]) if self.earlier else self.parameters

    @property
    def part_rows(self) -> int:
        """How many rows of the first axis are merged at a time."""
        if self.rule.cut is Cut.BLOCKS:
            return self._block_rows
        return 1 if self.slices else self.rows

    @property
    def slices(self) -> bool:
        """Whether each slice along the first axis is a matrix of its own (fused experts)."""
        return self.rule.cut is Cut.MATRICES and len(self.shape) > 2

    def parts(self) -> Iterator[tuple[int, int]]:
        """The row ranges to merge one after another; an empty tensor has none."""
        return self._ranges(self.part_rows)

    @property
    def part_shape(self) -> tuple[int, ...]:
        """The shape of one part, as the method sees it."""
        if self.slices:
            return self.shape[1:]
        return (self.part_rows, *self.shape[1:]) if self.shape else ()

    @property
    def working_bytes(self) -> int:
        """Upper estimate of memory at work for one part: the method's tensors and those coming in."""
        return self._at_work(self.rule.working_bytes)

    @property
    def held_bytes(self) -> int:
        """The same as the job is planned: less where it is ``parked``."""
        return self._at_work(
            self.rule.least_bytes if self.parked and self.rule.least_bytes else self.rule.working_bytes
        )

    def _at_work(self, estimate: Callable[[tuple[int, ...]], int]) -> int:
        incoming = max(1, len(self.inputs)) if self.rule.joint else 1 + len(self.rule.companions)
        in_float32 = estimate(self.part_shape) + incoming * FLOAT32 * math.prod(self.part_shape)
        return 2 * in_float32 if self.working_dtype == "F64" else in_float32

    @property
    def working_dtype(self) -> str:
        """What it is merged in: float32, but for float64 models, which keep their own precision."""
        return "F64" if self.dtype == "F64" else "F32"

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Row ranges of moderate size, for what can be done element by element whatever the rule."""
        return self._ranges(self._block_rows)

    @property
    def _block_rows(self) -> int:
        per_row = max(1, self.numel // max(1, self.rows))
        return max(1, min(self.rows, (self.block_elements or BLOCK_ELEMENTS) // per_row))

    def _ranges(self, rows: int) -> Iterator[tuple[int, int]]:
        for start in range(0, self.rows if self.numel else 0, max(1, rows)):
            yield start, min(self.rows, start + rows)

    @property
    def effort(self) -> float:
        """Rough seconds of one core for the whole job: what it takes beside other jobs."""
        parts = self.numel / max(1, math.prod(self.part_shape))
        return self.rule.effort(self.part_shape) * parts * max(1, len(self.inputs))
