"""YAML with line numbers, read as data and nothing else.

Knows nothing of recipes. Only plain scalars, lists and mappings come out: no tags, no code, no duplicate keys,
and no file that unfolds into more than it says (alias bombs).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from dopkit.errors import Problem

MOST_NODES = 20_000
MOST_DEPTH = 40

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


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?\d+(?:\.\d*)?[eE][-+]?\d+"),
    list("-+0123456789"),
)


def read(text: str) -> Document:
    """Parse ``text``; what is wrong with it as YAML is in ``problems``, and ``data`` is then None."""
    document = Document()
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is not None:
            document.data = _value(loader, root, (), document)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        document.problems.append(Problem(f"line {mark.line + 1}" if mark else "", f"not valid YAML: {what}"))
    except ValueError as error:
        document.problems.append(Problem("", str(error)))
    if document.problems:
        document.data = None
    return document


def _value(loader: Any, node: yaml.Node, path: Path, document: Document) -> Any:
    document.nodes += 1
    if document.nodes > MOST_NODES or len(path) > MOST_DEPTH:
        raise ValueError("the file is too large or too deeply nested for a recipe (aliases count each time)")
    document.lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        return _mapping(loader, node, path, document)
    if isinstance(node, yaml.SequenceNode):
        return [_value(loader, item, (*path, index), document) for index, item in enumerate(node.value)]
    value = loader.construct_object(node)
    # A date or a binary is no use to a recipe: keep what the user wrote.
    return value if value is None or isinstance(value, str | int | float | bool) else node.value


def _mapping(loader: Any, node: yaml.MappingNode, path: Path, document: Document) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "?"
        line = key_node.start_mark.line + 1
        if key in result:
            document.problems.append(Problem(f"line {line}", f"the key {key!r} stands twice"))
        document.lines[(*path, key)] = line
        result[key] = _value(loader, value_node, (*path, key), document)
    return result
