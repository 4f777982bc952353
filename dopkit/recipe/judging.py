"""The parameters of a recipe against the method's own model of them, at every level where a recipe may set some."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from dopkit import methods
from dopkit.methods.parameters import Parameters
from dopkit.recipe.document import Path as YamlPath
from dopkit.recipe.settings import is_gradient, mistake, possible, varies
from dopkit.recipe.wording import unknown_key, wrong_value
from dopkit.refs import ModelRef

Settings = dict[str, Any]


@dataclass(frozen=True)
class Level:
    """Parameters that stand at ``path``: of a single model, or of a slice or module and all models in it."""

    path: YamlPath
    settings: Settings
    single: bool = True


@dataclass(frozen=True)
class Given:
    """A model as the recipe names it in one place."""

    path: YamlPath
    index: int  # among the models that are merged there
    ref: ModelRef
    levels: tuple[Level, ...]  # the widest first, the model's own last; the recipe's own left out
    layers: tuple[int, int] | None = None


class Judge:
    """Holds parameters against one method; what is wrong goes to ``add``."""

    def __init__(self, method: methods.Method, add: Callable[[YamlPath, str], None], shuffled: bool = False) -> None:
        self._method, self._kind, self._add, self._shuffled = method, method.parameters, add, shuffled
        self._wrong = False

    def wide(self, given: Settings, path: YamlPath, absent: YamlPath) -> tuple[Parameters, Settings] | None:
        """The parameters of the recipe and those of them that vary, if all are right.

        ``absent`` is the place to name where one is missing.
        """
        settings = self._formed(given, path)
        found = self._each(settings, {}, path, absent)
        if found is None or self._wrong:
            return None
        return found, {name: setting for name, setting in settings.items() if varies(setting)}

    def levels(self, models: Sequence[Given], wide: Parameters | None) -> None:
        """Everything below the recipe's own parameters; where those are wrong, whether it may stand there at all."""
        good: dict[YamlPath, bool] = {}
        for given in models:
            before = wide.given() if wide is not None else None
            for level in given.levels:
                if level.path not in good:
                    good[level.path] = self._level(given, level, before)
                if good[level.path] and before is not None:
                    before |= {name: next(possible(setting)) for name, setting in level.settings.items()}

    def _level(self, given: Given, level: Level, before: Settings | None) -> bool:
        """Whether everything at one level is as it should be."""
        settings = self._formed(level.settings, level.path)
        if not level.settings:
            return True
        if len(settings) < len(level.settings) or not self._may_stand(given, level):
            return False
        return before is None or self._each(settings, before, level.path, level.path) is not None

    def required(self, models: Sequence[Given], given: Settings) -> None:
        """What each model needs, its own or the recipe's."""
        for name in sorted(self._kind.required - given.keys()):
            for model in models:
                own = [key for level in model.levels for key in level.settings]
                if not get_close_matches(name, own, n=1):  # one that is misspelt is told as such
                    what = (
                        f"{name!r} is missing: {self._method.name} needs one for every model, here or for all of them"
                    )
                    self._add(model.path, what)

    def together(self, models: Sequence[Given], wide: Parameters) -> str:
        """What is wrong with the parameters of all models seen together, where none varies."""
        own = [[level.settings for level in model.levels] for model in models]
        if any(varies(setting) for levels in own for settings in levels for setting in settings.values()):
            return ""
        merged = [{name: value for settings in levels for name, value in settings.items()} for levels in own]
        everyone = [self._kind.model_validate({**wide.given(), **settings}) for settings in merged]
        return self._kind.together(everyone) if everyone else ""

    def _formed(self, settings: Settings, path: YamlPath) -> Settings:
        """The settings whose form is right."""
        good = {}
        for name, setting in settings.items():
            what = mistake(setting)
            if not what and varies(setting) and name in self._kind.whole_model:
                what = f"{name} is one for the whole model, so it has neither filters nor a gradient"
            if what:
                self._wrong = True
                self._add((*path, name), what if what.startswith(name) else f"{name}: {what}")
            else:
                good[name] = setting
        return good

    def _may_stand(self, given: Given, level: Level) -> bool:
        method = self._method
        if not level.single:
            outside = sorted(level.settings.keys() & self._kind.whole_model)
            for name in outside:
                self._add((*level.path, name), f"{name} is one for the whole model; set it under its own 'parameters'")
            return not outside
        outside = [name for name in level.settings if name not in self._kind.per_model]
        for name in outside:
            self._add((*level.path, name), _not_per_model(method, name))
        if method.ordered and given.index == 0:
            self._add(level.path, "the first model is taken as it is, so parameters for it have no effect")
        elif method.ordered and self._shuffled:
            what = "with `order: shuffle` a model has no parameters of its own: it may come first"
            self._add(level.path, what)
        else:
            return not outside
        return False

    def _each(self, settings: Settings, before: Settings, path: YamlPath, absent: YamlPath) -> Parameters | None:
        """The parameters with the first value of each; every other value is tried beside those."""
        first = {name: next(possible(setting)) for name, setting in settings.items()}
        found = self._validate(before, first, path, absent)
        if found is None:
            return None
        for name, setting in settings.items():
            for value in [*possible(setting)][1:]:
                if self._validate({**before, **first}, {name: value}, path, absent) is None:
                    return None
            if is_gradient(setting) and all(isinstance(value, int) for value in possible(setting)):
                self._validate({**before, **first}, {name: float(setting[0])}, path, absent)
        return found

    def _validate(self, before: Settings, given: Settings, path: YamlPath, absent: YamlPath) -> Parameters | None:
        """The parameters ``given`` at ``path``, on top of those that are valid ``before``."""
        kind = self._kind
        unread = kind.unread({**before, **given})
        for key in sorted(given.keys() & unread.keys()):
            self._add((*path, key), f"{key!r} has no effect: {unread[key]}; remove it")
        read = {key: value for key, value in {**before, **given}.items() if key not in unread}
        try:
            return kind.model_validate(read)
        except ValidationError as error:
            self._wrong = True
            known = [name for name in kind.names() if name not in unread]
            for where, what in self._said(error, known):
                self._add((*path, *where) if where is not None else absent, what)
            return None

    def _said(self, error: ValidationError, known: list[str]) -> Iterator[tuple[YamlPath | None, str]]:
        for detail in error.errors():
            key = str(detail["loc"][-1]) if detail["loc"] else ""
            if detail["type"] == "missing":
                yield None, f"the parameter '{key}' is missing: {self._method.name} needs it"
            elif detail["type"] == "extra_forbidden":
                yield detail["loc"], unknown_key(key, known, "parameter")
            else:
                yield detail["loc"], wrong_value(detail)


def _not_per_model(method: methods.Method, key: str) -> str:
    if key in method.parameters.names():
        return f"{key!r} cannot be set per model with {method.name}; set it under the recipe's own 'parameters'"
    allowed = ", ".join(sorted(method.parameters.per_model)) or "none"
    return f"unknown parameter {key!r} for a single model (those of {method.name}: {allowed})"
