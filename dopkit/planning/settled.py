"""What is settled before tensors are compared: those that are taken from the base, and why.

By the recipe, or because nothing else makes sense. Works on headers and roles alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dopkit.errors import count
from dopkit.planning.matching import Model, matches, some
from dopkit.roles import Role
from dopkit.specs import MERGEABLE

if TYPE_CHECKING:
    from dopkit.recipe import Recipe

COUNTER = "counts the batches of training"


def why_fixed(recipe: Recipe, model: Model, canonical: str, name: str) -> str | None:
    """What takes this tensor of a model out of the merge, if anything does: a key of the recipe, or what it is."""
    if model.role(name) is Role.HEAD and recipe.heads:
        return f"heads: {recipe.heads}"
    if matches(canonical, recipe.copied):
        return "copy"
    # A batch norm's answers do not depend on it, and no two trainings end with the same.
    counter = name.rpartition(".")[2] == "num_batches_tracked" and model.specs[name].dtype not in MERGEABLE
    return COUNTER if counter else None


def copy_unread(recipe: Recipe, donor: Model, models: Sequence[Model]) -> tuple[Recipe, list[str]]:
    """The recipe with what the donor's own class does not read and no model holds among its copies; and notes of it.

    A pooler, say: the backbone's class may want it. The recipe of the result says so, for a merge that goes on from it.
    """
    skeleton = donor.skeleton
    held = {canonical for model in models for canonical in model.names}
    free = [
        (skeleton.roles[name].canonical, name)
        for name in donor.specs  # without what lies beside a tower
        if name in skeleton.unread | skeleton.unknown and skeleton.roles[name].canonical not in held
    ]
    more = sorted(pair for pair in free if why_fixed(recipe, donor, *pair) is None)
    if not more:
        return recipe, []
    notes = []
    for names, whose in (
        ([canonical for canonical, name in more if name in skeleton.unread], "of its backbone"),
        ([canonical for canonical, name in more if name in skeleton.unknown], "and its class does not read them"),
    ):
        if names:
            what = f"no model holds {some(names)} {whose}: kept as in the base, as with `copy`"
            notes.append(f"{donor.source.ref.short}: {what}")
    copied = (*recipe.copied, *(canonical for canonical, _ in more))
    return recipe.model_copy(update={"copied": copied}), notes


def counters_note(donor: Model, number: int) -> str:
    """That ``number`` tensors are taken from the donor because they only count."""
    what = f"{count(number, 'counter')} of batches (num_batches_tracked) taken from it: nothing is computed with them"
    return f"{donor.source.ref.short}: {what}"
