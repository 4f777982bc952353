"""From a tasks.yaml to Tasks, or to every one of its problems with its line.

Knows neither models nor data: what a task names is looked for later.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from dopkit import refs
from dopkit.errors import Problem, RecipeError, count
from dopkit.recipe.document import Document, read, text_of
from dopkit.recipe.document import Path as YamlPath
from dopkit.recipe.wording import judge, unknown_key
from dopkit.refs import ModelRef

Kind = Literal["image-classification", "text-classification", "perplexity"]
FILES = (".npz", ".parquet")
_INIT = "docs/evaluation.md shows one"
# Columns and settings that a kind of task does not look at.
_UNREAD: dict[str, tuple[str, ...]] = {
    "image-classification": ("text", "max_length"),
    "text-classification": ("image", "zero_shot"),
    "perplexity": ("image", "label", "head", "zero_shot"),
}


def _template(text: str) -> str:
    if text.count("{}") != 1:
        raise ValueError(f"the template {text!r} needs one {{}} where the class name goes")
    return text


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError(f"{text!r} is no name that fits into a line of a table")
    return text


class ZeroShot(BaseModel):
    """Class names and the prompts they are put into; what CLIP has instead of a head."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    classes: list[str] = Field(min_length=2)
    templates: list[Annotated[str, AfterValidator(_template)]] = Field(["a photo of a {}."], min_length=1)
    base: str | None = None  # whose text tower reads the prompts; by default the base of the merge


class _Task(BaseModel):
    """The keys of one task."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: Annotated[str, AfterValidator(_one_line)] = Field(min_length=1)
    kind: Kind
    data: str = Field(min_length=1)
    split: str | None = None
    config: str | None = None
    image: str | None = None
    text: str | None = None
    label: str | None = None
    head: str | None = None
    zero_shot: ZeroShot | None = None
    model: str | None = None
    limit: int | None = Field(None, gt=0)
    batch_size: int = Field(64, gt=0)
    max_length: int | None = Field(None, gt=1)


@dataclass(frozen=True)
class Task:
    """One task as the file has it. ``path`` is set for local data, ``dataset`` for a data set on the Hub."""

    name: str
    kind: Kind
    data: str
    path: Path | None
    dataset: ModelRef | None
    split: str = "test"
    config: str | None = None
    columns: dict[str, str] = field(default_factory=dict)  # of image, text and label: those that are named
    head: str | None = None
    zero_shot: ZeroShot | None = None
    base: ModelRef | None = None  # of zero_shot
    model: str | None = None
    limit: int | None = None
    batch_size: int = 64
    max_length: int | None = None

    @property
    def metric(self) -> str:
        """``accuracy``, from 0 to 1, or ``perplexity``, from 1 upwards."""
        return "perplexity" if self.kind == "perplexity" else "accuracy"

    @property
    def shown_data(self) -> str:
        """The data's name without the folders of this machine."""
        return self.path.name if self.path is not None else self.data

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the result, but for the data's own content. The batch size does not."""
        zero_shot = self.zero_shot.model_dump() if self.zero_shot else None
        keys = ("kind", "split", "config", "columns", "head", "limit", "max_length")
        return {key: getattr(self, key) for key in keys} | {"zero_shot": zero_shot}


def load_tasks(path: str | Path) -> tuple[Task, ...]:
    """Read and check a task file; nothing else is opened. Raises RecipeError with all problems."""
    path = Path(path)
    return parse_tasks(text_of(path, "task file", _INIT), path.parent, str(path))


def parse_tasks(text: str, folder: str | Path = ".", shown: str = "the task file") -> tuple[Task, ...]:
    """Check tasks given as YAML text; relative paths are meant from ``folder``. Raises RecipeError."""
    document = read(text)
    problems = list(document.problems)
    tasks: list[Task] = []
    if not problems:
        tasks = list(_tasks(document, Path(folder), problems))
    if problems:
        problems = sorted(dict.fromkeys(problems), key=lambda problem: int(problem.place.removeprefix("line ")))
        raise RecipeError(f"{shown} has {count(len(problems), 'problem')}", problems)
    return tuple(tasks)


def _tasks(document: Document, folder: Path, problems: list[Problem]) -> Iterator[Task]:
    data = document.data
    given = data.get("tasks") if isinstance(data, dict) else None
    if not isinstance(given, list) or not given:
        problems.append(document.problem(("tasks",), f"a task file is a mapping with a list of 'tasks'; {_INIT}"))
        return
    for key in data.keys() - {"tasks"}:
        problems.append(document.problem((key,), unknown_key(key, ["tasks"])))
    names: dict[str, int] = {}
    for index, value in enumerate(given):
        reading = _Reading(document, ("tasks", index), folder, value, problems)
        name = value.get("name") if isinstance(value, dict) else None
        if isinstance(name, str) and name in names:
            first = document.line(("tasks", names[name], "name"))
            reading.add(("name",), f"the name {name!r} stands twice (first in line {first})")
        elif isinstance(name, str):
            names[name] = index
        task = reading.task()
        if task is not None:
            yield task


class _Reading:
    """One pass over one task, collecting problems."""

    def __init__(self, document: Document, place: YamlPath, folder: Path, data: Any, problems: list[Problem]) -> None:
        self.document = document
        self.place = place
        self.folder = folder
        self.data = data
        self.problems = problems

    def add(self, path: YamlPath, what: str) -> None:
        self.problems.append(self.document.problem((*self.place, *path), what))

    def task(self) -> Task | None:
        """The task, or None when there are problems; those of its values are found with those of its keys."""
        if not isinstance(self.data, dict):
            self.add((), "a task is a mapping of keys")
            return None
        before = len(self.problems)
        found = self._keys()
        self._judge_whole()
        path, dataset = self._data()
        base = self._base(found.zero_shot) if found else None
        if found is None or len(self.problems) > before:
            return None
        columns = {key: value for key in ("image", "text", "label") if (value := getattr(found, key)) is not None}
        own = found.model_dump(exclude={"image", "text", "label", "zero_shot", "split"})
        split = found.split or Task.split
        return Task(
            **own, split=split, zero_shot=found.zero_shot, path=path, dataset=dataset, columns=columns, base=base
        )

    def _keys(self) -> _Task | None:
        try:
            return _Task.model_validate(self.data)
        except ValidationError as error:
            for path, what in judge(error, _known, set()):
                self.add(path, what)
            return None

    def _judge_whole(self) -> None:
        kind = self.data.get("kind")
        for key in _UNREAD.get(kind, ()) if isinstance(kind, str) else ():
            if self.data.get(key) is not None:
                self.add((key,), f"{key!r} has no effect with kind {kind}")
        if self.data.get("head") is not None and self.data.get("zero_shot") is not None:
            self.add(("zero_shot",), "a task has a head or is zero-shot, not both")

    def _data(self) -> tuple[Path | None, ModelRef | None]:
        """Where the data is: a path by its spelling or its ending, otherwise a data set on the Hub."""
        text = self.data.get("data")
        if not isinstance(text, str) or not text:
            return None, None
        try:
            ref = refs.parse(f"./{text}" if text.endswith(FILES) and text[0] not in "./~" else text, self.folder)
        except ValueError:
            self.add(
                ("data",), f"{text!r} is neither a file or folder (./images) nor a data set on the Hub (user/name)"
            )
            return None, None
        if ref.adapter is not None:
            self.add(("data",), f"{text!r} is not the name of a data set")
        if ref.folder is not None:
            for key in ("split", "config"):
                if self.data.get(key) is not None:
                    self.add((key,), f"{key!r} is for data sets on the Hub")
        return ref.folder, ref if ref.folder is None else None

    def _base(self, zero_shot: ZeroShot | None) -> ModelRef | None:
        if zero_shot is None or zero_shot.base is None:
            return None
        try:
            return refs.parse(zero_shot.base, self.folder)
        except ValueError as error:
            self.add(("zero_shot", "base"), str(error))
            return None


def _known(path: YamlPath) -> Sequence[str]:
    model = ZeroShot if path[0] == "zero_shot" and len(path) > 1 else _Task
    return list(model.model_fields)
