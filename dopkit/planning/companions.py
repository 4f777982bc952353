"""Which tensor of a companion stands beside which of its model's, and what is wrong where none does.

A companion is what a parameter of a method names for one model: the file of its Fisher information, say. It has a
tensor for each of the model's, under the names of the model. Works on headers alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from dopkit.errors import Problem, count
from dopkit.planning import Input, TensorJob
from dopkit.planning.matching import Model
from dopkit.specs import MERGEABLE
from dopkit.units import show_shape

_SHOWN = 3  # tensors named before "and 93 more"
_REMEDY = (
    "Merge what it lacks otherwise: `methods: [{{filter: {0}, merge_method: average}}]`; or keep the base's: `copy`."
)


@dataclass
class _Found:
    """One companion of one model, and what of it does not do."""

    companion: Model
    model: Model
    missing: list[str] = field(default_factory=list)  # canonical names
    different: list[str] = field(default_factory=list)  # in words

    def tensor(self, job: TensorJob, one: Input) -> str | None:
        """What stands beside a tensor of the model; None, and noted, where nothing fit does."""
        name = one.name if one.name in self.companion.specs else self.companion.names.get(job.canonical)
        if name is None:
            self.missing.append(job.canonical)
            return None
        spec, shape = self.companion.specs[name], self.model.specs[one.name].shape
        if one.name in self.model.source.gathered:
            self.different.append(f"the rows of {one.name} follow the tokens of the result, those of {name} do not")
        elif spec.shape != shape:
            self.different.append(f"{name} is {show_shape(spec.shape)}, in the model {show_shape(shape)}")
        elif spec.dtype not in MERGEABLE:
            self.different.append(f"{name} is {spec.dtype}, not floating-point")
        return name

    def problems(self) -> Iterator[Problem]:
        shown, whose = self.companion.source.ref.short, self.model.source.ref.short
        if self.missing:
            what = f"lacks {count(len(self.missing), 'tensor')} of {whose}: {_some(self.missing)}"
            yield Problem(shown, what, _REMEDY.format(self.missing[0]))
        if self.different:
            yield Problem(shown, f"does not fit {whose}: {_some(self.different)}")


def attach(
    jobs: Sequence[TensorJob], models: Sequence[Model], companions: Sequence[Mapping[str, Model]]
) -> tuple[list[TensorJob], list[Problem]]:
    """The jobs with what their rules read beside each model; and the problems, one for each companion and kind.

    ``companions`` holds those of each of ``models`` by parameter. A model without any is one that a merge goes on from.
    """
    found = [{name: _Found(companion, model) for name, companion in own.items()}
             for model, own in zip(models, companions, strict=True)]  # fmt: skip

    def with_companions(job: TensorJob, one: Input) -> Input:
        own = found[one.model]
        names = [own[part].tensor(job, one) for part in job.rule.companions if own]
        return replace(one, companions=tuple(name or "" for name in names))

    made = [
        replace(job, inputs=tuple(with_companions(job, one) for one in job.inputs)) if job.rule.companions else job
        for job in jobs
    ]
    return made, [problem for own in found for each in own.values() for problem in each.problems()]


def _some(things: Sequence[str]) -> str:
    more = f" and {len(things) - _SHOWN} more" if len(things) > _SHOWN else ""
    return ", ".join(things[:_SHOWN]) + more
