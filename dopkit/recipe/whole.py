"""What only shows when the keys of a recipe are seen together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dopkit import methods, refs
from dopkit.errors import count
from dopkit.recipe.document import Document
from dopkit.recipe.document import Path as YamlPath
from dopkit.recipe.judging import Given
from dopkit.recipe.sources import KEYS, SourceReading

_NOT_BY_LAYER = {
    "order": "a slice has its sources in the order in which they are written",
    "heads": "with slices and modules heads are merged like everything else, or taken from the base with `copy`",
    "output": "an adapter has no layers of its own to take",
}


class Whole:
    """One look at a whole document; ``meant`` are keys that a misspelt one was probably meant to be."""

    def __init__(
        self, data: dict[str, Any], document: Document, add: Callable[[YamlPath, str], None], meant: set[str]
    ) -> None:
        self._data, self._document, self._add, self._meant = data, document, add, meant

    def judge(self, method: methods.Method | None, base: refs.ModelRef | None, sources: SourceReading) -> None:
        """Every problem of the kind. Without a ``method`` those are left out that depend on it."""
        self._one_of_the_kinds()
        merged = [one for one in sources.given if not (method and method.skips_base and base and _same(one, base))]
        if method and method.needs_base and self._data.get("base_model") is None and "base_model" not in self._meant:
            what = f"'base_model' is missing: {method.name} works on task vectors, the differences from the base"
            self._add(("base_model",) if "base_model" in self._data else ("merge_method",), what)
        for group in _groups(merged):
            if method and not sources.unread and (what := wrong_number(method, len(group))):
                self._add(group[0].path[:-1], what)
        if method and not merged and sources.given and not sources.unread:
            self._add(sources.given[0].path[:-1], wrong_number(method, 0) or "there is nothing to merge but the base")
        self._without_effect(method)
        for group in _groups(merged):
            self._twice(group)

    def _one_of_the_kinds(self) -> None:
        there = [key for key in KEYS if key in self._data]
        for key in there:
            if self._data[key] is None:
                self._add((key,), f"{key!r} has no value")
        if len(there) > 1:
            what = f"{there[1]!r} stands beside {there[0]!r}: one of models, slices and modules says what is merged"
            self._add((there[1],), what)
        elif not there and not set(KEYS) & self._meant:
            self._add((), "'models' is missing")
        modules = self._data.get("modules")
        for name, module in modules.items() if isinstance(modules, dict) else ():
            if isinstance(module, dict) and (module.get("models") is None) == (module.get("slices") is None):
                self._add(("modules", name), "a module has either 'models' or 'slices'")

    def _without_effect(self, method: methods.Method | None) -> None:
        data = self._data
        if data.get("rank") is not None and data.get("output") != "adapter":
            self._add(("rank",), "'rank' has no effect without `output: adapter`")
        draws = data.get("order") == "shuffle" or (method is not None and method.random)
        if data.get("seed") is not None and not draws:
            self._add(("seed",), "'seed' has no effect without `order: shuffle`")
        if "models" not in data and (key := next((key for key in KEYS if key in data), None)):
            for other, why in _NOT_BY_LAYER.items():
                if data.get(other) not in (None, "given", "model"):
                    self._add((other,), f"{other!r} does not go with {key!r}: {why}")

    def _twice(self, group: Sequence[Given]) -> None:
        seen: dict[tuple[Any, ...], YamlPath] = {}
        for one in group:
            key = (*one.ref.key, one.layers)
            if key in seen:
                first = self._document.line(seen[key])
                self._add(one.path, f"{one.ref} is listed twice (first in line {first}); each model is merged once")
            seen.setdefault(key, one.path)


def wrong_number(method: methods.Method, number: int) -> str:
    """What is wrong with so many models, the base not counted where it stands among them; "" when nothing is."""
    least, most = method.least_models, method.most_models
    if least <= number and (most is None or number <= most):
        return ""
    beside = " beside the base" if method.needs_base and method.skips_base else ""
    if least == most:
        return f"{method.name} takes exactly {count(least, 'model')}{beside}, not {number}"
    if number < least:
        return f"{method.name} needs at least {least} models{beside}"
    return f"{method.name} takes at most {count(most or 0, 'model')}{beside}, not {number}"


def _groups(given: Sequence[Given]) -> list[list[Given]]:
    """The models that are merged with one another: all of the recipe, or those of one slice."""
    found: dict[YamlPath, list[Given]] = {}
    for one in given:
        found.setdefault(one.path[:-1], []).append(one)
    return list(found.values())


def _same(given: Given, base: refs.ModelRef) -> bool:
    return given.ref.key == base.key
