"""From a YAML file to a Recipe, or to every one of its problems with its line.

Two readings of one document: pydantic judges the recipe's own keys, the method's model judges its parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from dopkit import methods, refs
from dopkit.errors import DopkitError, Problem, RecipeError, count
from dopkit.methods.parameters import Parameters
from dopkit.recipe import Dtype, ModelEntry, Recipe
from dopkit.recipe.document import Document, read, text_of
from dopkit.recipe.document import Path as YamlPath
from dopkit.recipe.wording import judge, unknown_key, wrong_value

# Keys that mergekit reads and dopkit does not: refused by name, so that nobody thinks they took effect.
MERGEKIT_ONLY = {
    "slices", "modules", "tokenizer", "tokenizer_source", "chat_template", "name", "experts", "gate_mode",
}  # fmt: skip


_PLAIN = ("dtype", "out_dtype", "order", "seed", "heads", "output", "rank", "repo_id")  # keys taken as they are
_INIT = "`dopkit init` writes one to start from"


def _entry(value: Any) -> Any:
    """``models`` may hold plain strings."""
    return {"model": value} if isinstance(value, str) else value


def _list(value: Any) -> Any:
    return [value] if isinstance(value, str) else _or_nothing([])(value)


def _or_nothing(nothing: Any) -> Callable[[Any], Any]:
    """A key with nothing behind it (its lines may be commented out) holds ``nothing``."""
    return lambda value: nothing if value is None else value


_Settings = Annotated[dict[str, Any], BeforeValidator(_or_nothing({}))]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    model: str
    adapter: str | None = None
    parameters: _Settings = Field(default_factory=dict)


_Model = tuple[int, refs.ModelRef, dict[str, Any]]  # place in the list, reference, its own parameters


class _File(BaseModel):
    """The keys of a recipe file. Values of parameters are left to the method."""

    model_config = ConfigDict(extra="forbid", strict=True)
    base_model: str | None = None
    merge_method: str
    models: list[Annotated[_Entry, BeforeValidator(_entry)]] = Field(min_length=1)
    parameters: _Settings = Field(default_factory=dict)
    dtype: Dtype | None = None
    out_dtype: Dtype | None = None
    order: Literal["given", "shuffle"] = "given"
    seed: int | None = Field(None, ge=0)
    heads: Literal["base", "drop", "per-task"] | None = None
    copied: Annotated[list[str], BeforeValidator(_list)] = Field(default_factory=list, alias="copy")
    output: Literal["model", "adapter"] = "model"
    rank: int | None = Field(None, ge=1)
    repo_id: Annotated[str, AfterValidator(refs.parse_repo_id)] | None = None


def load_recipe(path: str | Path) -> Recipe:
    """Read and check a recipe file; nothing else is opened, no network is used.

    Relative folders in it are meant from the recipe's own folder. Raises RecipeError with all problems.
    """
    path = Path(path)
    text = text_of(path, "recipe", _INIT)
    return parse_recipe(text, name=path.stem, folder=path.parent, shown=str(path))


def parse_recipe(text: str, name: str = "merged", folder: str | Path = ".", shown: str = "the recipe") -> Recipe:
    """Check a recipe given as YAML text; relative folders are meant from ``folder``. Raises RecipeError."""
    document = read(text)
    problems = list(document.problems)
    if not problems and not isinstance(document.data, dict):
        problems = [Problem("line 1", f"a recipe is a mapping of keys; {_INIT}")]
    if not problems:
        reading = _Reading(document, Path(folder))
        recipe = reading.recipe(name)
        if recipe is not None:
            return recipe
        problems = sorted(dict.fromkeys(reading.problems), key=_line)
    raise RecipeError(f"{shown} has {count(len(problems), 'problem')}", problems)


def _line(problem: Problem) -> int:
    return int(problem.place.removeprefix("line "))


class _Reading:
    """One pass over one document, collecting problems."""

    def __init__(self, document: Document, folder: Path) -> None:
        self.document = document
        self.folder = folder
        self.problems: list[Problem] = []
        self.data: dict[str, Any] = document.data
        self.unread = False  # whether there are models that could not be read
        self.meant: set[str] = set()  # keys that a misspelt one was probably meant to be

    def add(self, path: YamlPath, what: str) -> None:
        self.problems.append(self.document.problem(path, what))

    def recipe(self, name: str) -> Recipe | None:
        """The recipe, or None when there are problems."""
        file = self._file()
        base = self._ref(self.data.get("base_model"), ("base_model",))
        entries = list(self._entries())
        self.unread = len(entries) < len(self.data.get("models") or [])
        method = self._method()
        if method and method.skips_base and base:
            entries = [entry for entry in entries if entry[1].key != base.key]
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
            **{key: getattr(file, key) for key in _PLAIN},
        )

    def _file(self) -> _File | None:
        try:
            return _File.model_validate(self.data)
        except ValidationError as error:
            for path, what in judge(error, _keys, self.meant, _wrong, _unknown):
                self.add(path, what)
            return None

    def _entries(self) -> Iterator[_Model]:
        models = self.data.get("models")
        for index, value in enumerate(models if isinstance(models, list) else []):
            entry = _entry(value)
            if not isinstance(entry, dict):
                continue  # _file has said so
            ref = self._model(entry, ("models", index))
            own = entry.get("parameters")
            if ref is not None:
                yield index, ref, own if isinstance(own, dict) else {}

    def _model(self, entry: dict[str, Any], path: YamlPath) -> refs.ModelRef | None:
        """The model of an entry, with the adapter that stands beside it."""
        ref, adapter = self._ref(entry.get("model"), path), self._ref(entry.get("adapter"), (*path, "adapter"))
        if ref is None or adapter is None:
            return ref
        try:
            return ref.with_adapter(adapter)
        except ValueError as error:
            self.add((*path, "adapter"), str(error))
            return None

    def _ref(self, value: Any, path: YamlPath) -> refs.ModelRef | None:
        if not isinstance(value, str):
            return None
        try:
            return refs.parse(value, self.folder)
        except ValueError as error:
            self.add(path, str(error))
            return None

    def _method(self) -> methods.Method | None:
        name = self.data.get("merge_method")
        if not isinstance(name, str):
            return None
        try:
            return methods.find(name)
        except DopkitError as error:
            self.add(("merge_method",), error.headline)
            return None

    def _parameters(self, method: methods.Method, entries: list[_Model]) -> Parameters | None:
        given = self.data.get("parameters") or {}
        if not isinstance(given, dict):
            return None
        parameters = self._validate(method, {}, given, ("parameters",))
        for index, _, own in entries:
            path: YamlPath = ("models", index, "parameters")
            outside = [key for key in own if key not in method.parameters.per_model]
            for key in outside:
                self.add((*path, key), _not_per_model(method, key))
            if own and method.ordered and index == 0:
                self.add(path, "the first model is taken as it is, so parameters for it have no effect")
            elif own and method.ordered and self.data.get("order") == "shuffle":
                self.add(path, "with `order: shuffle` a model has no parameters of its own: it may come first")
            elif own and not outside and parameters is not None:
                self._validate(method, parameters.given(), own, path)
        for key in sorted(method.parameters.required - given.keys()):
            for index, _, own in entries:
                if key not in own:
                    what = f"'{key}' is missing: {method.name} needs one for every model, here or for all of them"
                    self.add(("models", index), what)
        if parameters is not None and not self.problems:
            everyone = [method.parameters.model_validate({**parameters.given(), **own}) for _, _, own in entries]
            if entries and (what := method.parameters.together(everyone)):
                self.add(("models",), what)
        return parameters

    def _validate(
        self, method: methods.Method, before: dict[str, Any], given: dict[str, Any], path: YamlPath
    ) -> Parameters | None:
        """The parameters ``given`` at ``path``, on top of those that are valid ``before``."""
        unread = method.parameters.unread({**before, **given})
        for key in sorted(given.keys() & unread.keys()):
            self.add((*path, key), f"{key!r} has no effect: {unread[key]}; remove it")
        read = {key: value for key, value in {**before, **given}.items() if key not in unread}
        try:
            return method.parameters.model_validate(read)
        except ValidationError as error:
            known = [name for name in method.parameters.names() if name not in unread]
            for detail in error.errors():
                key = str(detail["loc"][-1]) if detail["loc"] else ""
                if detail["type"] == "missing":
                    where = path if "parameters" in self.data else ("merge_method",)
                    self.add(where, f"the parameter '{key}' is missing: {method.name} needs it")
                    continue
                wrong = detail["type"] != "extra_forbidden"
                what = wrong_value(detail) if wrong else unknown_key(key, known, "parameter")
                self.add((*path, *detail["loc"]), what)
            return None

    def _judge_whole(self, method: methods.Method | None, base: refs.ModelRef | None, entries: list[_Model]) -> None:
        """What only shows when the keys are seen together."""
        if method and method.needs_base and self.data.get("base_model") is None and "base_model" not in self.meant:
            what = f"'base_model' is missing: {method.name} works on task vectors, the differences from the base"
            self.add(("base_model",) if "base_model" in self.data else ("merge_method",), what)
        if method and self.data.get("models") and not self.unread and (what := _wrong_number(method, len(entries))):
            self.add(("models",), what)
        if self.data.get("rank") is not None and self.data.get("output") != "adapter":
            self.add(("rank",), "'rank' has no effect without `output: adapter`")
        draws = self.data.get("order") == "shuffle" or (method is not None and method.random)
        if self.data.get("seed") is not None and not draws:
            self.add(("seed",), "'seed' has no effect without `order: shuffle`")
        seen: dict[tuple[str, ...], int] = {}
        for index, ref, _ in entries:
            if ref.key in seen:
                first = self.document.line(("models", seen[ref.key]))
                self.add(("models", index), f"{ref} is listed twice (first in line {first}); each model is merged once")
            seen.setdefault(ref.key, index)


def _wrong_number(method: methods.Method, number: int) -> str:
    """What is wrong with so many models, the base not counted where it stands among them; "" when nothing is."""
    least, most = method.least_models, method.most_models
    if least <= number and (most is None or number <= most):
        return ""
    beside = " beside the base" if method.needs_base and method.skips_base else ""
    if least == most:
        return f"{method.name} takes exactly {count(least, 'model')}{beside}, not {number}"
    return f"{method.name} needs at least {least} models{beside}" if number < least else (
        f"{method.name} takes at most {count(most or 0, 'model')}{beside}, not {number}"
    )  # fmt: skip


def _unknown(key: str, known: Sequence[str]) -> str:
    if key in MERGEKIT_ONLY:
        return f"{key!r} is a mergekit key that dopkit does not support"
    return unknown_key(key, known)


def _wrong(detail: ErrorDetails) -> str:
    if len(detail["loc"]) == 2 and detail["loc"][0] == "models":
        return "a model is a reference (user/name or ./folder), or a mapping with the key 'model'"
    return wrong_value(detail)


def _keys(path: YamlPath) -> list[str]:
    """The keys there are where ``path`` stands."""
    model = _Entry if path[0] == "models" else _File
    return [field.alias or name for name, field in model.model_fields.items()]


def _not_per_model(method: methods.Method, key: str) -> str:
    if key in method.parameters.names():
        return f"{key!r} cannot be set per model with {method.name}; set it under the recipe's own 'parameters'"
    allowed = ", ".join(sorted(method.parameters.per_model)) or "none"
    return f"unknown parameter {key!r} for a single model (those of {method.name}: {allowed})"
