"""Several documents in one recipe file: which refers to which by name, and which of them is the result.

mergekit-multi's dialect. Knows documents and names, not what is merged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dopkit import refs
from dopkit.errors import Problem
from dopkit.recipe import Recipe, Stage
from dopkit.recipe.document import Document
from dopkit.recipe.document import Path as YamlPath

_ONE_RESULT = "the result is the document without a name, or the only one that nobody refers to"
_NORM = "its scale takes a second pass over the whole model; give `scale` a number"


@dataclass(frozen=True, eq=False)
class Part:
    """One document of several: what it is called, and which stages it refers to in which places."""

    document: Document
    name: str | None
    uses: Sequence[tuple[str, YamlPath]]
    recipe: Recipe | None  # None when it has problems of its own


def names_of(documents: Sequence[Document]) -> frozenset[str]:
    """The names that the others may refer to."""
    return frozenset(name for document in documents if (name := name_of(document)) is not None)


def name_of(document: Document) -> str | None:
    """What a document is called, if that is a text."""
    name = document.data.get("name")
    return name if isinstance(name, str) else None


def joined(parts: Sequence[Part]) -> tuple[Recipe | None, list[Problem]]:
    """The recipe of the result with its stages, each behind those that it needs; or every problem of the whole."""
    problems = [*_names(parts), *_cycles(parts)] if len(parts) > 1 else list(_cycles(parts))
    result = None
    if not problems:
        result, problems = _result(parts)
    if result is not None:
        problems += [problem for part in parts for problem in _unfit(part, part is result, len(parts) > 1)]
    if problems or result is None or result.recipe is None:
        return None, problems
    stages: list[Stage] = []
    for part in _ordered(parts):
        if part is not result and part.recipe is not None and part.name is not None:
            own = part.recipe.model_copy(update={"name": part.name})
            stages.append(Stage(name=part.name, recipe=own.model_copy(update={"stages": own.needed(stages)})))
    return result.recipe.model_copy(update={"stages": tuple(stages)}), []


def _names(parts: Sequence[Part]) -> Iterator[Problem]:
    first: dict[str, Part] = {}
    for part in parts:
        if part.name is None:
            continue
        try:
            refs.parse_stage(part.name)
        except ValueError as error:
            yield part.document.problem(("name",), str(error))
        if part.name in first:
            line = first[part.name].document.line(("name",))
            what = f"another document is called {part.name!r} (line {line})"
            yield part.document.problem(("name",), what)
        first.setdefault(part.name, part)


def _cycles(parts: Sequence[Part]) -> Iterator[Problem]:
    """Every reference that leads back to its own document, told once for each way round."""
    by_name = {part.name: part for part in parts if part.name is not None}
    told: set[frozenset[str]] = set()
    for part in parts:
        for used, path in part.uses:
            way = _way(by_name, used, part.name)
            if way and frozenset(way) not in told:
                told.add(frozenset(way))
                steps = ", ".join(f"{one} needs {two}" for one, two in zip((way[-1], *way), way, strict=False))
                yield part.document.problem(path, f"the stages need each other: {steps}")


def _way(by_name: dict[str, Part], first: str, goal: str | None) -> tuple[str, ...]:
    """The shortest way from a stage that is referred to back to the one that refers to it; () where there is none."""
    ways: dict[str, tuple[str, ...]] = {first: (first,)}
    waiting = [first]
    for here in waiting:
        if here == goal:
            return ways[here]
        for used, _ in by_name[here].uses:
            if used not in ways:
                ways[used] = (*ways[here], used)
                waiting.append(used)
    return ()


def _result(parts: Sequence[Part]) -> tuple[Part | None, list[Problem]]:
    unnamed = [part for part in parts if part.name is None]
    used = {name for part in parts for name, _ in part.uses}
    free = unnamed or [part for part in parts if part.name not in used]
    assert free, "without a cycle one of them is referred to by nobody"
    if len(free) > 1:
        line = free[0].document.line(() if unnamed else ("name",))
        if unnamed:
            what = f"another document without a name (the first begins in line {line}): {_ONE_RESULT}"
            return None, [part.document.problem((), what) for part in free[1:]]
        why = f"nobody refers to it, nor to {free[0].name} (line {line}): {_ONE_RESULT}"
        return None, [part.document.problem(("name",), f"two results: {why}") for part in free[1:]]
    needed = {free[0].name}
    for part in reversed(_ordered(parts)):
        if part is free[0] or part.name in needed:
            needed |= {name for name, _ in part.uses}
    idle = [part for part in parts if part is not free[0] and part.name not in needed]
    return free[0], [part.document.problem(("name",), f"the result does not need {part.name}") for part in idle]


def _ordered(parts: Sequence[Part]) -> list[Part]:
    """Each document behind those that it refers to, otherwise as in the file. There are no cycles."""
    by_name = {part.name: part for part in parts if part.name is not None}
    found: list[Part] = []

    def take(part: Part) -> None:
        if part not in found:
            for name, _ in part.uses:
                take(by_name[name])
        if part not in found:
            found.append(part)

    for part in parts:
        take(part)
    return found


def _unfit(part: Part, result: bool, several: bool) -> Iterator[Problem]:
    """What a document asks for that does not go with stages."""
    data, stage = part.document.data, f"{part.name} is a stage"
    if several and data.get("output") == "adapter":
        what = "an adapter is merged from adapters alone, so it neither is a stage nor has any"
        yield part.document.problem(("output",), f"'output': {what}")
    if result:
        return
    if data.get("heads") == "per-task":
        yield part.document.problem(("heads",), f"{stage}, and `heads: per-task` keeps heads beside a result alone")
    if data.get("repo_id") is not None:
        yield part.document.problem(("repo_id",), f"'repo_id' has no effect: {stage}, and the result is published")
    if part.recipe is not None and part.recipe.method.parameters.companions:
        what = f"{stage}, and {part.recipe.merge_method} cannot be in one: it reads a file beside every model"
        yield part.document.problem(("merge_method",), what)
    if part.recipe is not None and part.recipe.method.scale_of(part.recipe.parameters) == "norm":
        path: YamlPath = ("parameters", "scale")
        place = path if path in part.document.lines else ("merge_method",)
        yield part.document.problem(place, f"{stage}, and `scale: norm` cannot be in one: {_NORM}")
