"""Unit tests for dopkit.recipe.document: YAML as data with lines, and nothing that does more."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest

from dopkit.recipe import document
from dopkit.recipe.document import read, write


def data(text: str) -> Any:
    found = read(text)
    assert found.problems == []
    return found.data


def problems(text: str) -> list[str]:
    found = read(text)
    assert found.data is None
    return [str(problem) for problem in found.problems]


# Values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("-2.5e+3", -2500.0),
        (".5e-3", 5e-4),
        ("3.e2", 300.0),
        ("0.8", 0.8),
        ("1.0e-4", 1e-4),
        ("200", 200),
        ("true", True),
        ("null", None),
        ("", None),
        ("~", None),
        ("user/name@1e5", "user/name@1e5"),
        ("'1e-4'", "1e-4"),
        ("1e", "1e"),
        ("e5", "e5"),
        ("2024-01-31", "2024-01-31"),
        ("2024-13-45", "2024-13-45"),
        ("0x_", "0x_"),
        ("=", "="),
        ("!!int 'x'", "x"),
        ("!!str 5", "5"),
        ("9" * 5000, "9" * 5000),
        (".inf", math.inf),
    ],
)
def test_scalars(text: str, value: Any) -> None:
    found = data(f"key: {text}")["key"]
    assert (found, type(found)) == (value, type(value))


def test_keys_are_the_words_that_were_written() -> None:
    assert data("1: a\non: b\n~: c\n2024-01-31: d\n<<: e\n[x]: f") == {
        "1": "a",
        "on": "b",
        "~": "c",
        "2024-01-31": "d",
        "<<": "e",
        "?": "f",
    }


def test_aliases_are_copies_of_what_they_name() -> None:
    assert data("a: &x {k: [1, 2]}\nb: *x") == {"a": {"k": [1, 2]}, "b": {"k": [1, 2]}}


def test_a_byte_order_mark_is_no_text() -> None:
    assert data("\ufeffkey: 1") == {"key": 1}


def test_nothing_is_nothing() -> None:
    assert [data(text) for text in ("", "# a comment\n", "---\n", "\n\n")] == [None] * 4


def test_reading_leaves_other_yaml_alone() -> None:
    import yaml

    assert yaml.safe_load("1e-4") == "1e-4"


# Lines


def test_every_part_knows_its_line() -> None:
    found = read("a: 1\nb:\n  - x\n  - k: 2\n    l: [3,\n      4]\n# no more\n")
    lines = {
        (): 1, ("a",): 1, ("b",): 2, ("b", 0): 3, ("b", 1): 4, ("b", 1, "k"): 4, ("b", 1, "l"): 5, ("b", 1, "l", 0): 5,
        ("b", 1, "l", 1): 6,
    }  # fmt: skip
    assert found.lines == lines
    # of what is not there, the line of what is around it
    assert [found.line(path) for path in [("b", 1, "zzz"), ("b", 7), ("zzz",), ("a", 0, 0)]] == [4, 2, 1, 1]
    assert str(found.problem(("b", 1, "l"), "is wrong", "Mend it.")) == "line 5: is wrong\n    Mend it."


# What is refused


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: b: c", ["line 1: not valid YAML: mapping values are not allowed here"]),
        ("ok: 1\n\tb: 2", ["line 2: not valid YAML: found character '\\t' that cannot start any token"]),
        ("a: [1, 2\nb: 3", ["line 2: not valid YAML: expected ',' or ']', but got ':'"]),
        ("a: 1\n---\nb: 2", ["line 3: a second document has no place here"]),
        ("a: *x", ["line 1: not valid YAML: found undefined alias 'x'"]),
        ("a: 1\nb: \x00", ["line 2: not valid YAML: the character '\\x00' is not allowed"]),
        ("a: 1\nb: 2\na: 3\na: 4", [
            "line 3: the key 'a' stands twice (first in line 1)",
            "line 4: the key 'a' stands twice (first in line 3)",
        ]),
        ("a: {b: 1, b: 2}", ["line 1: the key 'b' stands twice (first in line 1)"]),
        ("a: !!python/object/apply:os.system [ls]\nb: !!set {x}\nc: !!binary a\nd: !mine 5\ne: !!seq x\nf: !!int [1]", [
            "line 1: the YAML tag !!python/object/apply:os.system has no place here",
            "line 2: the YAML tag !!set has no place here",
            "line 3: the YAML tag !!binary has no place here",
            "line 4: the YAML tag !mine has no place here",
            "line 5: the YAML tag !!seq has no place here",
            "line 6: the YAML tag !!int has no place here",
        ]),
    ],
)  # fmt: skip
def test_what_is_no_plain_yaml_is_refused_with_its_line(text: str, expected: list[str]) -> None:
    assert problems(text) == expected


LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        LAUGHS,
        "x: &x [*x]",
        "x: &x {k: *x}",
        "[" * 100_000,
        "{a: " * 5_000,
        "- " * 50_000,
        "[" * 50 + "]" * 50,
        "- x\n" * 30_000,
        "x: " + "y" * 1_000_000,
    ],
    ids=["laughs", "loop", "loop in mapping", "open lists", "open mappings", "dashes", "nested", "long", "wide"],
)
def test_a_file_that_is_too_much_is_refused_at_once(text: str) -> None:
    started = time.monotonic()
    message = "the file is too large or too deeply nested for a recipe (aliases count each time)"
    assert problems(text) == [f"line 1: {message}"]
    assert time.monotonic() - started < 10


# Writing


def test_what_is_written_reads_back_the_same(tmp_path: Path) -> None:
    values = {
        "numbers": [1, 0.1, 1e-4, 1e-05, 1e22, 0.99999, 1 / 3, 0],
        "words": [
            "1e-4",
            "1e5",
            ".5e3",
            "yes",
            "null",
            "",
            "2024-01-31",
            "=",
            "<<",
            "a: b",
            "# c",
            "é",
            "x" * 300,
            "a\nb",
        ],
        "truth": [True, False, None],
        "nested": {"z": {}, "a": []},
    }
    text = write(values)
    assert data(text) == values
    assert list(data(text)) == list(values)


def test_limits_are_far_above_any_recipe() -> None:
    models = "models:\n" + "".join(
        f"  - model: user/model-{index}\n    parameters: {{alpha: 0.5}}\n" for index in range(2000)
    )
    assert len(models) < document.MOST_CHARACTERS
    assert len(data(models)["models"]) == 2000
