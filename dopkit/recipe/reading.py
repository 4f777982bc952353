"""From a YAML file to a Recipe, or to every one of its problems with its line.

Two readings of one document: pydantic judges the recipe's own keys, the method's model judges its parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from dopkit import methods, refs
from dopkit.errors import DopkitError, Problem, RecipeError, count
from dopkit.methods.parameters import Parameters
from dopkit.recipe import Dtype, ModelEntry, Recipe
from dopkit.recipe.document import Document, read
from dopkit.recipe.document import Path as YamlPath

# Keys that mergekit reads and dopkit does not: refused by name, so that nobody thinks they took effect.
MERGEKIT_ONLY = {
    "slices", "modules", "tokenizer", "tokenizer_source", "chat_template", "name", "experts", "gate_mode",
}  # fmt: skip


def _entry(value: Any) -> Any:
    """``models`` may hold plain strings."""
    return {"model": value} if isinstance(value, str) else value


def _list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    model: str
    parameters: dict[str, Any] = Field(default_factory=dict)


class _File(BaseModel):
    """The keys of a recipe file. Values of parameters are left to the method."""

    model_config = ConfigDict(extra="forbid", strict=True)
    base_model: str | None = None
    merge_method: str
    models: list[Annotated[_Entry, BeforeValidator(_entry)]] = Field(min_length=1)
    parameters: dict[str, Any] = Field(default_factory=dict)
    dtype: Dtype | None = None
    out_dtype: Dtype | None = None
    order: Literal["given", "shuffle"] = "given"
    seed: int | None = Field(None, ge=0)
    heads: Literal["base", "drop"] | None = None
    copied: Annotated[list[str], BeforeValidator(_list)] = Field(default_factory=list, alias="copy")


def load_recipe(path: str | Path) -> Recipe:
    """Read and check a recipe file; nothing else is opened, no network is used.

    Relative folders in it are meant from the recipe's own folder. Raises RecipeError with all problems.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(
            f"there is no recipe {path}", [Problem("", "`dopkit init` writes one to start from")]
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read the recipe {path}: {error}") from None
    return parse_recipe(text, name=path.stem, folder=path.parent, shown=str(path))


def parse_recipe(text: str, name: str = "merged", folder: str | Path = ".", shown: str = "the recipe") -> Recipe:
    """Check a recipe given as YAML text; relative folders are meant from ``folder``. Raises RecipeError."""
    document = read(text)
    problems = list(document.problems)
    if not problems and not isinstance(document.data, dict):
        problems = [Problem("line 1", "a recipe is a mapping of keys; `dopkit init` writes one to start from")]
    if not problems:
        reading = _Reading(document, Path(folder))
        recipe = reading.recipe(name)
        if recipe is not None:
            return recipe
        problems = sorted(set(reading.problems), key=lambda problem: int(problem.place.removeprefix("line ") or 0))
    raise RecipeError(f"{shown} has {count(len(problems), 'problem')}", problems)


class _Reading:
    """One pass over one document, collecting problems."""

    def __init__(self, document: Document, folder: Path) -> None:
        self.document = document
        self.folder = folder
        self.problems: list[Problem] = []
        self.data: dict[str, Any] = document.data

    def recipe(self, name: str) -> Recipe | None:
        """The recipe, or None when there are problems."""
        file = self._file()
        base = self._ref(self.data.get("base_model"), ("base_model",))
        entries = list(self._entries())
        method = self._method()
        parameters = self._parameters(method, entries) if method else None
        self._judge_whole(method, base, entries)
        if self.problems or file is None or parameters is None:
            return None
        return Recipe(
            name=name,
            base_model=base,
            merge_method=file.merge_method,
            models=tuple(ModelEntry(model=ref, parameters=own) for _, ref, own in entries),
            parameters=parameters,
            copied=tuple(file.copied),
            **{key: getattr(file, key) for key in ("dtype", "out_dtype", "order", "seed", "heads")},
        )

    def _file(self) -> _File | None:
        try:
            return _File.model_validate(self.data)
        except ValidationError as error:
            for detail in error.errors():
                self._add(detail, (), _known_keys(detail["loc"]))
            return None

    def _entries(self) -> Iterator[tuple[int, refs.ModelRef, dict[str, Any]]]:
        models = self.data.get("models")
        for index, value in enumerate(models if isinstance(models, list) else []):
            entry = _entry(value)
            if not isinstance(entry, dict):
                continue  # _file has said so
            ref = self._ref(entry.get("model"), ("models", index))
            own = entry.get("parameters")
            if ref is not None:
                yield index, ref, own if isinstance(own, dict) else {}

    def _ref(self, value: Any, path: YamlPath) -> refs.ModelRef | None:
        if not isinstance(value, str):
            return None
        try:
            return refs.parse(value, self.folder)
        except ValueError as error:
            self.problems.append(self.document.problem(path, str(error)))
            return None

    def _method(self) -> methods.Method | None:
        name = self.data.get("merge_method")
        if not isinstance(name, str):
            return None
        try:
            return methods.find(name)
        except DopkitError as error:
            self.problems.append(self.document.problem(("merge_method",), error.headline))
            return None

    def _parameters(self, method: methods.Method, entries: list[Any]) -> Parameters | None:
        given = self.data.get("parameters") or {}
        if not isinstance(given, dict):
            return None
        parameters = self._validate(method, given, ("parameters",))
        for index, _, own in entries:
            path: YamlPath = ("models", index, "parameters")
            outside = [key for key in own if key not in method.parameters.per_model]
            for key in outside:
                self.problems.append(self.document.problem((*path, key), _not_per_model(method, key)))
            if own and index == 0:
                what = "the first model is taken as it is, so parameters for it have no effect"
                self.problems.append(self.document.problem(path, what))
            elif own and not outside and parameters is not None:
                self._validate(method, {**given, **own}, path)
        return parameters

    def _validate(self, method: methods.Method, given: dict[str, Any], path: YamlPath) -> Parameters | None:
        unread = method.parameters.unread(given)
        for key in sorted(given.keys() & unread.keys()):
            what = f"{key!r} has no effect: {unread[key]}; remove it"
            self.problems.append(self.document.problem((*path, key), what))
        given = {key: value for key, value in given.items() if key not in unread}
        try:
            return method.parameters.model_validate(given)
        except ValidationError as error:
            for detail in error.errors():
                self._add(detail, path, list(method.parameters.model_fields))
            return None

    def _judge_whole(self, method: methods.Method | None, base: refs.ModelRef | None, entries: list[Any]) -> None:
        """What only shows when the keys are seen together."""
        if method and method.needs_base and "base_model" not in self.data and not self._suggested("base_model"):
            what = f"'base_model' is missing: {method.name} works on task vectors, the differences from the base"
            self.problems.append(self.document.problem(("merge_method",), what))
        if method and isinstance(self.data.get("models"), list) and 0 < len(entries) < method.least_models:
            what = f"{method.name} needs at least {method.least_models} models"
            self.problems.append(self.document.problem(("models",), what))
        if self.data.get("seed") is not None and self.data.get("order") != "shuffle":
            what = "'seed' has no effect without `order: shuffle`"
            self.problems.append(self.document.problem(("seed",), what))
        seen: dict[tuple[str, str], int] = {}
        for index, ref, _ in entries:
            if ref.key in seen:
                first = self.document.line(("models", seen[ref.key]))
                what = f"{ref} is listed twice (first in line {first}); each model is merged once"
                self.problems.append(self.document.problem(("models", index), what))
            seen.setdefault(ref.key, index)

    def _suggested(self, key: str) -> bool:
        """Whether some unknown key was probably meant to be this one."""
        return any(f"did you mean {key!r}" in problem.what for problem in self.problems)

    def _add(self, detail: ErrorDetails, prefix: YamlPath, known: list[str]) -> None:
        context = detail.get("ctx") or {}
        path: YamlPath = (*prefix, *detail["loc"])
        key = str(path[-1]) if path else ""
        kind = detail["type"]
        if kind == "extra_forbidden":
            what = _unknown_key(key, known)
        elif kind == "missing":
            what = f"{key!r} is missing"
        elif kind == "value_error":
            what = str(context.get("error", detail["msg"]))
        else:
            message = detail["msg"].removeprefix("Input ").strip()
            what = f"{key}: {detail['input']!r} {message}" if _short(detail["input"]) else f"{key}: {message}"
        self.problems.append(self.document.problem(path, what))


def _short(value: Any) -> bool:
    return isinstance(value, str | int | float | bool) and len(repr(value)) < 60


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    """The keys that could stand where pydantic found a problem."""
    model = _Entry if location[:1] == ("models",) else _File
    return [field.alias or name for name, field in model.model_fields.items()]


def _unknown_key(key: str, known: list[str]) -> str:
    hint = methods.suggestion(key, known).strip()
    if key in MERGEKIT_ONLY:
        return f"{key!r} is a mergekit key that dopkit does not support"
    return f"unknown key {key!r} ({hint or 'known: ' + ', '.join(known)})"


def _not_per_model(method: methods.Method, key: str) -> str:
    if key in method.parameters.model_fields and not method.parameters.per_model:
        return f"{key!r} cannot be set per model with {method.name}; set it under the recipe's own 'parameters'"
    allowed = ", ".join(sorted(method.parameters.per_model)) or "none"
    return f"unknown parameter {key!r} for a single model (those of {method.name}: {allowed})"
