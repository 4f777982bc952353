"""YAML with line numbers, read as data and nothing else; and data written so that it reads back the same.

Knows no recipe's keys. Only plain scalars, lists and mappings come out: no tags, no code, no duplicate keys,
and no file that unfolds into more than it says (alias bombs).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import yaml

from dopkit.errors import Problem, RecipeError

MOST_CHARACTERS = 300_000
MOST_NODES = 20_000
MOST_DEPTH = 40
MOST_DOCUMENTS = 100
_TOO_LARGE = "the file is too large or too deeply nested for a recipe (aliases count each time)"

Path = tuple[str | int, ...]


@dataclass
class Document:
    """The data of a YAML text and the line each part stands on (from 1)."""

    data: Any = None
    lines: dict[Path, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    nodes: int = 0

    def line(self, path: Path) -> int:
        """The line of ``path``, or of the nearest part around it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def problem(self, path: Path, what: str, remedy: str = "") -> Problem:
        return Problem(f"line {self.line(path)}", what, remedy)


class _Loader(yaml.SafeLoader):
    """Reads ``1e-4`` as the number that people mean; YAML 1.1 would make it a string."""


class _Dumper(yaml.SafeDumper):
    """Quotes a string that ``_Loader`` would take for a number."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)[eE][-+]?\d+"),
        list("-+.0123456789"),
    )

_YAML = "tag:yaml.org,2002:"
_VALUES = ("null", "bool", "int", "float", "str")
_WORDS = ("timestamp", "merge", "value")  # what YAML 1.1 makes of `2024-01-31`, `<<` and `=`; a recipe keeps the text
_KINDS: dict[type[yaml.Node], tuple[str, ...]] = {
    yaml.ScalarNode: (*_VALUES, *_WORDS),
    yaml.SequenceNode: ("seq",),
    yaml.MappingNode: ("map",),
}


class _TooLarge(Exception):
    """More nodes, or deeper ones, than any recipe has."""


def text_of(path: FilePath, kind: str, remedy: str = "") -> str:
    """The text of a file of some ``kind`` (``recipe``). Raises RecipeError, with ``remedy`` when there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"there is no {kind} {path}", [Problem("", remedy)] if remedy else []) from None
    except UnicodeDecodeError:
        raise RecipeError(f"cannot read the {kind} {path}: it is not UTF-8 text") from None
    except (OSError, ValueError) as error:  # ValueError: a path that holds a zero byte
        raise RecipeError(f"cannot read the {kind} {path}: {getattr(error, 'strerror', error)}") from None


def read(text: str) -> Document:
    """Parse ``text``; what is wrong with it as YAML is in ``problems``, and ``data`` is then None."""
    first, *others = read_all(text)
    if others:
        first.problems.append(Problem(f"line {others[0].line(())}", "a second document has no place here"))
        first.data = None
    return first


def read_all(text: str) -> list[Document]:
    """Parse every document of ``text``, those that hold nothing left out: at least one.

    What is wrong with any as YAML is in the ``problems`` of the first, and no document then has ``data``.
    """
    documents: list[Document] = []
    problems: list[Problem] = []
    nodes = 0  # of all documents
    try:
        if len(text) > MOST_CHARACTERS:
            raise _TooLarge
        loader = _Loader(text)
        while loader.check_node():
            document = Document(nodes=nodes)
            node = loader.get_node()
            assert node is not None, "there is one"
            document.data = _value(loader, node, (), document)
            nodes = document.nodes
            problems += document.problems
            if document.data is not None or document.problems:
                documents.append(document)
            if len(documents) > MOST_DOCUMENTS:
                raise _TooLarge
    except yaml.YAMLError as error:
        problems.append(_not_yaml(error, text))
    except (_TooLarge, RecursionError):
        problems.append(Problem("line 1", _TOO_LARGE))
    if problems:
        return [Document(problems=problems)]
    return documents or [Document()]


def write_all(documents: Sequence[Any]) -> str:
    """Several documents as one YAML text; ``read_all`` gives them back."""
    return "---\n".join(map(write, documents))


def write(data: Any) -> str:
    """``data`` as YAML text, keys in their own order; ``read`` gives it back."""
    return str(yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110))


def _not_yaml(error: yaml.YAMLError, text: str) -> Problem:
    line, what = 1, "it cannot be read"
    if isinstance(error, yaml.reader.ReaderError):
        line, what = (
            text.count("\n", 0, error.position) + 1,
            f"the character {chr(int(error.character))!r} is not allowed",
        )
    elif isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        line, what = error.problem_mark.line + 1, str(error.problem)
    return Problem(f"line {line}", f"not valid YAML: {what}")


def _value(loader: Any, node: yaml.Node, path: Path, document: Document) -> Any:
    document.nodes += 1
    if document.nodes > MOST_NODES or len(path) > MOST_DEPTH:
        raise _TooLarge
    document.lines.setdefault(path, node.start_mark.line + 1)
    kind = node.tag.removeprefix(_YAML)
    if kind not in _KINDS[type(node)]:
        what = f"the YAML tag {node.tag.replace(_YAML, '!!')} has no place here"
        document.problems.append(Problem(f"line {node.start_mark.line + 1}", what))
        return None
    if isinstance(node, yaml.MappingNode):
        return _mapping(loader, node, path, document)
    if isinstance(node, yaml.SequenceNode):
        return [_value(loader, item, (*path, index), document) for index, item in enumerate(node.value)]
    if kind in _WORDS:
        return node.value
    try:
        return loader.construct_object(node)
    except (ValueError, KeyError):  # it only looks like a number: `0x_`, or an explicit tag on something else
        return node.value


def _mapping(loader: Any, node: yaml.MappingNode, path: Path, document: Document) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "?"
        line = key_node.start_mark.line + 1
        if key in result:
            what = f"the key {key!r} stands twice (first in line {document.lines[(*path, key)]})"
            document.problems.append(Problem(f"line {line}", what))
        document.lines[(*path, key)] = line
        result[key] = _value(loader, value_node, (*path, key), document)
    return result
