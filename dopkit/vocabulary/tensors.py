"""Which tensors of the models follow the vocabulary, and whether a merge has anything to do with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dopkit import skeleton
from dopkit.errors import Problem
from dopkit.planning.matching import Model, matches
from dopkit.recipe import Recipe
from dopkit.roles import Role
from dopkit.vocabulary.checkpoint import Names


@dataclass(frozen=True)
class Tensors:
    """Of every model, in order: canonical name to checkpoint name of what has a row for every token."""

    models: Sequence[Model]
    names: Sequence[Mapping[str, str]]
    problems: Sequence[Problem]

    def rows(self, own: int) -> int | None:
        """How many rows a model has; None where nothing of it follows the vocabulary."""
        specs = self.models[own].specs
        return min((specs[name].rows for name in self.names[own].values()), default=None)

    def merged(self, recipe: Recipe) -> bool:
        """Whether any of them is merged, and not copied from the base or left out."""
        donor = self.models[0]
        return any(
            not matches(canonical, recipe.copied) and not (donor.role(name) is Role.HEAD and recipe.heads)
            for canonical, name in self.names[0].items()
        )

    def of(self, own: int) -> dict[str, Names]:
        """Each of a model's tensors by its name there, with its name in every model; a tied one is its twin."""
        return {name: [self._like(one, canonical) for one in range(len(self.models))]
                for canonical, name in self.names[own].items()}  # fmt: skip

    def _like(self, other: int, canonical: str) -> str | None:
        names, tied = self.names[other], self.models[other].skeleton.tied
        return names.get(canonical) or names.get(tied.get(canonical, ""))


def find(models: Sequence[Model]) -> Tensors:
    """Ask the classes of the models, each class once for the tensors it has."""
    known: dict[tuple[object, ...], Mapping[str, int]] = {}
    found, problems = [], []
    for model in models:
        canonical = {model.skeleton.roles[name].canonical: name for name in model.specs}
        key = (str((model.config or {}).get("architectures")), *canonical)
        if key not in known:
            known[key] = skeleton.vocabulary_axes(model.config, canonical)
        if across := [name for name, axis in known[key].items() if axis]:
            what = f"{canonical[across[0]]} has a column for every token; only rows can be put in another order"
            problems.append(Problem(model.source.ref.short, what))
        found.append({name: canonical[name] for name in known[key]})
    return Tensors(models, found, problems)
