"""What only values can tell, and must be told before anything is written.

Tensors that are no arithmetic (position ids, indices) must be equal in all models; a tied tensor that is stored twice
must be equal to its twin.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from dopkit import methods
from dopkit.checkpoints import Checkpoint
from dopkit.engine.announcing import Read, announce
from dopkit.errors import Problem
from dopkit.planning import BLOCK_ELEMENTS, Plan

_SHOWN = 5  # tensors named before "and 93 more"


@dataclass(frozen=True)
class _Pair:
    """Two tensors that must be equal."""

    one: tuple[Checkpoint, str]
    other: tuple[Checkpoint, str]
    shown: str  # how a message names it
    canonical: str

    def alike(self) -> bool:
        """Whether their headers agree."""
        one, other = (checkpoint.specs[name] for checkpoint, name in (self.one, self.other))
        return (one.dtype, one.shape) == (other.dtype, other.shape)

    def reads(self) -> Iterator[Read]:
        """Some rows of the one and the same of the other, by turns."""
        spec = self.one[0].specs[self.one[1]]
        step = max(1, BLOCK_ELEMENTS * spec.rows // max(1, spec.numel))
        for start in range(0, spec.rows, step):
            rows = (start, min(spec.rows, start + step))
            yield *self.one, rows
            yield *self.other, rows

    def equal(self) -> bool:
        """Bit for bit."""
        read = (checkpoint.read(name, rows) for checkpoint, name, rows in self.reads())
        return self.alike() and all(torch.equal(one, next(read)) for one in read)


def check_equal(plan: Plan, donor: Checkpoint, models: Sequence[Checkpoint]) -> list[Problem]:
    """Every model whose integers differ from the donor's, and every tied tensor that differs from its twin."""
    integers, twins = list(_integers(plan, donor, models)), list(_twins(plan, donor, models))
    announce((read for pair in (*integers, *twins) if pair.alike() for read in pair.reads()), plan.stream_bytes)
    different: dict[Checkpoint, list[_Pair]] = {}
    for pair in integers:
        if not pair.equal():
            different.setdefault(pair.other[0], []).append(pair)
    problems = [_integers_differ(model, donor, pairs) for model, pairs in different.items()]
    return problems + [_twin_differs(pair) for pair in twins if not pair.equal()]


def _integers(plan: Plan, donor: Checkpoint, models: Sequence[Checkpoint]) -> Iterator[_Pair]:
    for job in plan.jobs:
        if job.rule is methods.EQUAL and job.base is not None:
            for one in job.inputs:
                other = (models[one.model], one.name)
                yield _Pair((donor, job.base), other, f"{one.name} ({job.dtype})", job.canonical)


def _twins(plan: Plan, donor: Checkpoint, models: Sequence[Checkpoint]) -> Iterator[_Pair]:
    by_ref = {model.ref: model for model in (donor, *models)}
    for dropped in plan.dropped:
        if dropped.twin:
            own = by_ref[dropped.ref]
            yield _Pair((own, dropped.name), (own, dropped.twin), f"{dropped.name} should be {dropped.why}", "")


def _integers_differ(model: Checkpoint, donor: Checkpoint, pairs: Sequence[_Pair]) -> Problem:
    more = f" and {len(pairs) - _SHOWN} more" if len(pairs) > _SHOWN else ""
    names = ", ".join(pair.shown for pair in pairs[:_SHOWN]) + more
    verb = "differs" if len(pairs) == 1 else "differ"
    what = f"{names} {verb} from {donor.ref.short}, and integers cannot be merged"
    patterns = [pair.canonical for pair in pairs]
    ends = {pattern.rpartition(".")[2] for pattern in patterns}
    if len(patterns) > 1 and len(ends) == 1:  # an index in every layer, say
        patterns = [f'"*.{ends.pop()}"']
    return Problem(model.ref.short, what, f"Take the base's with `copy: [{', '.join(patterns)}]`.")


def _twin_differs(pair: _Pair) -> Problem:
    remedy = "Set tie_word_embeddings to false in its config.json, if that is what was trained."
    return Problem(pair.one[0].ref.short, f"{pair.shown} by its config, but holds other values", remedy)
