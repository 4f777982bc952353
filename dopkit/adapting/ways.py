"""How each module is merged: which methods leave factors, and by which arithmetic.

Weighted sums of task vectors do, and the folds that stay in the span of what they fold. Methods and parameters may be
others for other modules, as a recipe has them for tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pydantic import ValidationError

from dopkit.checkpoints.adapter_places import Names
from dopkit.checkpoints.joining import Joined
from dopkit.errors import Problem
from dopkit.methods import BASE, DOP_ADAM, Cut, Rule
from dopkit.methods.coefficients import SUMS, Turns, of_the_rest, turns
from dopkit.methods.costs import copies, elementwise_effort
from dopkit.methods.fold import Context
from dopkit.methods.parameters import DopParameters, Parameters
from dopkit.planning import Continuation
from dopkit.planning.making import why_wrong
from dopkit.recipe import Override, Recipe
from dopkit.recipe.settings import Place

if TYPE_CHECKING:
    from dopkit.linalg.factors import Factors

JOINED = Rule("factors joined", None, Cut.WHOLE, False, copies(4), elementwise_effort)
CUT = Rule("factors cut", None, Cut.WHOLE, False, copies(12), elementwise_effort, float64=True)

_LEAVE_OUT = "Leave out `output: adapter`: the result is then a whole model."


@dataclass(frozen=True)
class Way:
    """A weighted sum, or the fold of a rule."""

    rule: Rule  # as the method gives it, or JOINED
    weights: Turns | None  # of the adapters' task vectors, where it is a sum
    parameters: tuple[Parameters, ...]  # in force for each adapter

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
        fold = factored.folded_in_turn if _goes_on(self.rule) else factored.folded_at_once
        return fold(self.rule, products, contexts)


def _goes_on(rule: Rule) -> bool:
    """Whether a fold carries nothing but what is merged."""
    return list(rule.state((1, 1))) == ["merged"]


def obstacles(recipe: Recipe) -> Iterator[Problem]:
    """Why methods leave no factors, whatever the adapters."""
    wholes: tuple[Recipe | Override, ...] = (recipe, *recipe.overrides)
    for name in dict.fromkeys(one.merge_method for one in wholes):
        if name not in (*SUMS, "dop"):
            yield Problem("output: adapter", f"{name} leaves no factors ({', '.join(SUMS)} and dop do)", _LEAVE_OUT)
    if any(isinstance(one.parameters, DopParameters) and one.parameters.solver == "adam" for one in wholes):
        yield _adam()


def _adam() -> Problem:
    what = "its steps go by single entries of the matrix, and leave no factors"
    return Problem("solver: adam", what, "Use `solver: exact`, or leave out `output: adapter`.")


def find_ways(
    modules: Sequence[Joined], recipe: Recipe, before: Continuation | None, base: Names
) -> tuple[dict[str, Way | None], list[Problem]]:
    """By module, the way; None where it stays as it is in the base. And what cannot be, each once."""
    ways: dict[str, Way | None] = {}
    problems: dict[Problem, None] = {}
    for joined in modules:
        try:
            ways[joined.module] = _way_of(joined, recipe, before, base)
        except ValidationError as error:
            problems[Problem(base.canonical(joined.tensor), why_wrong(error))] = None
        except ValueError as error:
            problems[Problem("output: adapter", str(error), _LEAVE_OUT)] = None
    rules = [way.rule for way in ways.values() if way is not None and way.weights is None]
    if DOP_ADAM in rules:
        problems[_adam()] = None
    if before is not None and not all(map(_goes_on, rules)):
        what = "the sums over the earlier adapters were not kept"
        problems[Problem("history: all", what, "Read the earlier adapters again with --from-experts.")] = None
    return ways, list(problems)


def _way_of(joined: Joined, recipe: Recipe, before: Continuation | None, base: Names) -> Way | None:
    """Raises ValueError with the reason why it leaves no factors, ValidationError for parameters that make no sense."""
    name = joined.tensor
    canonical = base.canonical(name)
    place = Place(tuple(dict.fromkeys((canonical, name))), base.depth(name))
    wide, *own = (recipe.parameters_at(place, level) for level in _levels(recipe))
    earlier = [before.recipe.parameters_at(place, entry.parameters) for entry in before.recipe.models] if before else []
    each, method = tuple(own), (recipe.override_at(place) or recipe).method
    if method.name in SUMS:
        models = [*earlier, *each[1:]] if before else each
        return Way(JOINED, turns(method.name, models, len(earlier)), each)
    rule = method.rule_for(wide, canonical, base.role(name), base.specs[name].shape)
    if rule is BASE:
        return None
    if rule.needs_base:  # the method's own; what it leaves to others needs none
        return Way(rule, None, each)
    return Way(JOINED, of_the_rest(rule, max(1, len(earlier)), len(each) - 1), each)


def _levels(recipe: Recipe) -> Iterator[Mapping[str, object]]:
    """What is set beside the recipe's own parameters: nothing, then for every adapter."""
    yield {}
    yield from (entry.parameters for entry in recipe.models)
