"""docs/recipe.md has every key that a recipe file may hold, and every word that may stand behind one."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel

from dopkit.recipe import keys

PAGE = (Path(__file__).parent.parent / "docs" / "recipe.md").read_text()
# First cell of a table row: the keys that it explains.
ROWS = {
    name: row
    for row in re.findall(r"^\| `.*$", PAGE, re.MULTILINE)
    for name in re.findall(r"`(\w+)`", row.split("|")[1])
}


def models() -> list[type[BaseModel]]:
    found = [value for value in vars(keys).values() if isinstance(value, type) and issubclass(value, BaseModel)]
    return [model for model in found if model.model_fields]


def words(annotation: Any) -> Iterator[str]:
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    elif get_origin(annotation) is types.UnionType:
        for part in get_args(annotation):
            yield from words(part)


@pytest.mark.parametrize("model", models(), ids=lambda model: model.__name__)
def test_every_key_is_explained(model: type[BaseModel]) -> None:
    for name, field in model.model_fields.items():
        key = field.alias or name
        assert key in ROWS, key
        for word in words(field.annotation):
            assert f"`{word}`" in ROWS[key], (key, word)


def test_no_key_is_explained_that_there_is_not() -> None:
    known = {field.alias or name for model in models() for name, field in model.model_fields.items()}
    rules = {"dop", "mean", "half", "base", "equal"}  # the table of what happens to a tensor
    assert ROWS.keys() - known <= rules | {"adam"}
