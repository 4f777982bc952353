"""How each module is merged: which methods leave factors, and by which arithmetic.

Weighted sums of task vectors do, and the folds that stay in the span of what they fold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dopkit.checkpoints.adapter_places import Names
from dopkit.checkpoints.joining import Joined
from dopkit.errors import Problem
from dopkit.methods import BASE, DOP_ADAM, Cut, Rule
from dopkit.methods.coefficients import SUMS, Turns, of_the_rest, turns
from dopkit.methods.costs import copies, elementwise_effort
from dopkit.methods.fold import Context
from dopkit.methods.parameters import DopParameters
from dopkit.planning import Continuation
from dopkit.recipe import Recipe

if TYPE_CHECKING:
    from dopkit.linalg.factors import Factors

JOINED = Rule("factors joined", None, Cut.WHOLE, False, copies(4), elementwise_effort)
CUT = Rule("factors cut", None, Cut.WHOLE, False, copies(12), elementwise_effort, float64=True)


@dataclass(frozen=True)
class Way:
    """A weighted sum, or the fold of a rule."""

    rule: Rule  # as the method gives it, or JOINED
    weights: Turns | None  # of the adapters' task vectors, where it is a sum

    def shown(self, joined: Joined) -> Rule:
        """The rule under the name that plan and receipt print."""
        if self.weights is not None:
            return CUT if joined.rank < joined.together else JOINED
        cut = "cut " if joined.rank < joined.full else ""
        return replace(self.rule, name=f"{self.rule.name} on {cut}factors")

    def merge(self, products: Sequence[Factors], contexts: Sequence[Context]) -> Factors:
        """The merged task vector of one module; ``products`` and ``contexts`` are those of every adapter."""
        from dopkit.methods import factored

        if self.weights is not None:
            return factored.weighted(products, self.weights)
        carries_nothing_else = list(self.rule.state((1, 1))) == ["merged"]
        fold = factored.folded_in_turn if carries_nothing_else else factored.folded_at_once
        return fold(self.rule, products, contexts)


def obstacles(recipe: Recipe, before: Continuation | None) -> Iterator[Problem]:
    """Why a method leaves no factors, with its parameters."""
    remedy = "Leave out `output: adapter`: the result is then a whole model."
    parameters = recipe.parameters
    if isinstance(parameters, DopParameters):
        if parameters.solver != "exact":
            what = "its steps go by single entries of the matrix, and leave no factors"
            yield Problem("solver: adam", what, "Use `solver: exact`, or leave out `output: adapter`.")
    elif recipe.merge_method not in SUMS:
        what = f"{recipe.merge_method} leaves no factors ({', '.join(SUMS)} and dop do)"
        yield Problem("output: adapter", what, remedy)
    else:
        try:
            _sum(recipe, before)
        except ValueError as error:
            yield Problem("output: adapter", str(error), remedy)


def way_of(joined: Joined, recipe: Recipe, before: Continuation | None, base: Names) -> Way | None:
    """How a module is merged by a method without ``obstacles``; None where it stays as it is in the base."""
    if recipe.merge_method in SUMS:
        return Way(JOINED, _sum(recipe, before))
    name = joined.tensor
    rule = recipe.method.rule_for(recipe.parameters, base.canonical(name), base.role(name), base.specs[name].shape)
    assert rule is not DOP_ADAM, "it was refused"
    if rule is BASE:
        return None
    if rule.needs_base:  # the method's own; what it leaves to others needs none
        return Way(rule, None)
    first = 1 if before is None else before.step
    return Way(JOINED, of_the_rest(rule, first, len(recipe.models) - 1))


def _sum(recipe: Recipe, before: Continuation | None) -> Turns:
    each = [recipe.parameters_for(index) for index in range(len(recipe.models))]
    if before is None:
        return turns(recipe.merge_method, each)
    earlier = [before.recipe.parameters_for(index) for index in range(before.step)]
    return turns(recipe.merge_method, [*earlier, *each[1:]], before.step)
