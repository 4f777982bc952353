"""From a YAML file to a Recipe, or to every one of its problems with its line.

A file may hold several documents (``stages``). Two readings of each: pydantic judges the recipe's own keys, the
method's model judges its parameters.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dopkit import methods
from dopkit.errors import DopkitError, Problem, RecipeError, count
from dopkit.methods.parameters import Parameters
from dopkit.recipe import ModelEntry, Override, Recipe, stages
from dopkit.recipe.dialect import without_idle
from dopkit.recipe.document import Document, read_all, text_of
from dopkit.recipe.document import Path as YamlPath
from dopkit.recipe.judging import Given, Judge, Settings
from dopkit.recipe.keys import PLAIN, File, as_list, known_keys, unknown, wrong
from dopkit.recipe.sources import SourceReading
from dopkit.recipe.tokenizer import read_tokenizer
from dopkit.recipe.whole import Whole, wrong_number
from dopkit.recipe.wording import judge
from dopkit.refs import ModelRef

_INIT = "`dopkit init` writes one to start from"


def load_recipe(path: str | Path) -> Recipe:
    """Read and check a recipe file; nothing else is opened, no network is used.

    Relative folders in it are meant from the recipe's own folder. Raises RecipeError with all problems.
    """
    path = Path(path)
    text = text_of(path, "recipe", _INIT)
    return parse_recipe(text, name=path.stem, folder=path.parent, shown=str(path))


def parse_recipe(text: str, name: str = "merged", folder: str | Path = ".", shown: str = "the recipe") -> Recipe:
    """Check a recipe given as YAML text; relative folders are meant from ``folder``. Raises RecipeError."""
    documents = read_all(text)
    problems = list(documents[0].problems)
    if not problems:
        what = f"a recipe is a mapping of keys; {_INIT}"
        problems = [one.problem((), what) for one in documents if not isinstance(one.data, dict)]
    if not problems:
        names, several = stages.names_of(documents), len(documents) > 1
        readings = [_Reading(document, Path(folder), names, several) for document in documents]
        parts = [reading.part(name) for reading in readings]
        recipe, problems = stages.joined(parts)
        problems += [problem for reading in readings for problem in reading.problems]
        if recipe is not None and not problems:
            return recipe
        problems = sorted(dict.fromkeys(problems), key=_line)
    raise RecipeError(f"{shown} has {count(len(problems), 'problem')}", problems)


def _line(problem: Problem) -> int:
    return int(problem.place.removeprefix("line "))


class _Reading:
    """One pass over one document, collecting problems."""

    def __init__(self, document: Document, folder: Path, names: frozenset[str], several: bool) -> None:
        self.document = document
        self.folder, self.names = folder, names
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        self.data: dict[str, Any] = without_idle(document.data, self.notes)
        self.meant: set[str] = set()  # keys that a misspelt one was probably meant to be
        self.sources = SourceReading(self.data, folder, self.add, names, several)
        self.base = self.sources.ref(self.data.get("base_model"), ("base_model",))

    def add(self, path: YamlPath, what: str) -> None:
        self.problems.append(self.document.problem(path, what))

    def part(self, name: str) -> stages.Part:
        """The document among the others of its file."""
        recipe = self.recipe(name)
        return stages.Part(self.document, stages.name_of(self.document), self.sources.uses, recipe)

    def recipe(self, name: str) -> Recipe | None:
        """The recipe, or None when there are problems."""
        file = self._file()
        base = self.base
        self._bases_of_slices(base)
        method = self._method(self.data.get("merge_method"), ("merge_method",))
        merged = self.sources.given
        if method and method.skips_base and base:
            merged = [one for one in merged if one.ref.key != base.key]
        found = self._parameters(method, merged) if method else None
        known = [one.key for one in (*(one.ref for one in merged), *((base,) if base else ()))]
        tokenizer = read_tokenizer(self.data, self.folder, known, self.add, self.names)
        overrides = list(self._overrides(method, merged))
        entries = self._entries(method, [one for one in self.sources.distinct() if one in merged])
        Whole(self.data, self.document, self.add, self.meant).judge(method, base, self.sources)
        if self.problems or file is None or found is None:
            return None
        parts = self.sources.parts
        return Recipe(
            name=name,
            base_model=base,
            merge_method=file.merge_method,
            models=entries,
            parameters=found[0],
            varying=found[1],
            overrides=tuple(overrides),
            parts=parts,
            notes=tuple(self.notes),
            copied=tuple(file.copied),
            tokenizer=tokenizer,
            **{key: getattr(file, key) for key in PLAIN},
        )

    def _file(self) -> File | None:
        try:
            return File.model_validate(self.data)
        except ValidationError as error:
            for path, what in judge(error, known_keys, self.meant, wrong, unknown):
                self.add(path, what)
            return None

    def _bases_of_slices(self, base: ModelRef | None) -> None:
        """A slice may name its base once more, but no other one."""
        for index, piece in enumerate(as_list(self.data.get("slices"))):
            path: YamlPath = ("slices", index, "base_model")
            own = self.sources.ref(piece.get("base_model"), path) if isinstance(piece, dict) else None
            if own is not None and (base is None or own.key != base.key):
                self.add(path, "a slice has no base of its own; set the recipe's 'base_model'")

    def _method(self, name: Any, path: YamlPath) -> methods.Method | None:
        if not isinstance(name, str):
            return None
        try:
            return methods.find(name)
        except DopkitError as error:
            self.add(path, error.headline)
            return None

    def _parameters(self, method: methods.Method, models: list[Given]) -> tuple[Parameters, Settings] | None:
        """The recipe's own parameters and those of them that vary; all below are judged as well."""
        settings = self.data.get("parameters") or {}
        if not isinstance(settings, dict):
            return None
        judge = Judge(method, self.add, shuffled=self.data.get("order") == "shuffle")
        for name in sorted(settings.keys() & method.parameters.companions):
            self.add(("parameters", name), f"each model has a {name} of its own: set it in its entry of 'models'")
        found = judge.wide(settings, ("parameters",), self._absent("parameters"))
        judge.required(models, settings)
        judge.levels(models, found and found[0])
        if found is None:
            return None
        if not (self.problems or found[1] or self.sources.parts) and (what := judge.together(models, found[0])):
            self.add(("models",), what)
        return found

    def _overrides(self, method: methods.Method | None, models: list[Given]) -> Iterator[Override]:
        """The other methods, for the tensors that fall under their filters."""
        for index, one in enumerate(as_list(self.data.get("methods"))):
            path: YamlPath = ("methods", index)
            if not isinstance(one, dict) or not isinstance(one.get("filter"), str):
                continue  # _file has said so
            other = self._method(one.get("merge_method"), (*path, "merge_method"))
            settings = one.get("parameters") or {}
            if other is None or not isinstance(settings, dict):
                continue
            for what in self._no_override(method, other, len(models)):
                self.add((*path, "merge_method"), what)
            judge = Judge(other, self.add)
            found = judge.wide(settings, (*path, "parameters"), (*path, "merge_method"))
            judge.required(models, settings)
            for name in sorted(settings.keys() & other.parameters.whole_model):
                self.add((*path, "parameters", name), f"{name} is one for the whole model; it has no place here")
            if found is not None:
                parameters, varying = found
                yield Override(filter=one["filter"], merge_method=other.name, parameters=parameters, varying=varying)

    def _entries(self, method: methods.Method | None, models: list[Given]) -> tuple[ModelEntry, ...]:
        """The models of the recipe. What slices set for them stands with their sources."""
        if self.sources.parts:
            if method and method.parameters.companions and models:
                what = f"{method.name} reads a file beside every model, and that only under 'models'"
                self.add(("merge_method",), what)
            return tuple(ModelEntry(model=one.ref) for one in models)
        return tuple(self._entry(method, one) for one in models)

    def _entry(self, method: methods.Method | None, given: Given) -> ModelEntry:
        names = sorted(method.parameters.companions) if method else []
        found = {name: ref for name in names if (ref := self.sources.beside(given, name)) is not None}
        parameters = {name: value for name, value in given.levels[-1].settings.items() if name not in names}
        return ModelEntry(model=given.ref, parameters=parameters, companions=found)

    def _no_override(self, method: methods.Method | None, other: methods.Method, models: int) -> Iterator[str]:
        if other.parameters.companions and other is not method:
            yield f"{other.name} reads a file beside every model: make it the recipe's method, and the other one this"
        if other.needs_base and self.data.get("base_model") is None:
            yield f"{other.name} works on task vectors: it needs the recipe's 'base_model'"
        listed = self.base is not None and any(one.ref.key == self.base.key for one in self.sources.given)
        if method and other.skips_base != method.skips_base and listed:
            yield f"the base stands among the models: one of {method.name} and {other.name} would merge it, one not"
        if not self.sources.parts and (what := wrong_number(other, models)):
            yield what

    def _absent(self, key: str) -> YamlPath:
        return (key,) if key in self.data else ("merge_method",)
