"""What pydantic finds wrong with a file of settings, in words about its keys. Knows no file's keys."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from dopkit import methods
from dopkit.recipe.document import Path


def judge(
    error: ValidationError,
    known: Callable[[Path], Sequence[str]],
    meant: set[str],
    wrong: Callable[[ErrorDetails], str] | None = None,
    unknown: Callable[[str, Sequence[str]], str] | None = None,
) -> Iterator[tuple[Path, str]]:
    """Every problem as its place and a sentence.

    ``known`` tells which keys there are where an unknown one stands; ``meant`` collects those that a misspelt one was
    probably meant to be, which are then not said to be missing as well. ``wrong`` and ``unknown`` say it otherwise.
    """
    wrong, unknown = wrong or wrong_value, unknown or unknown_key
    # Misspelt keys first: see ``meant``.
    for detail in sorted(error.errors(), key=lambda detail: detail["type"] != "extra_forbidden"):
        path, key = detail["loc"], str(detail["loc"][-1])
        if detail["type"] == "extra_forbidden":
            names = known(path)
            meant.update(difflib.get_close_matches(key, names, n=1))
            yield path, unknown(key, names)
        elif detail["type"] != "missing":
            yield path, wrong(detail)
        elif key not in meant:
            yield path, f"{key!r} is missing"


def wrong_value(detail: ErrorDetails) -> str:
    """What pydantic says of a value, as a sentence about its key."""
    key = next((str(part) for part in reversed(detail["loc"]) if isinstance(part, str)), "")
    value = detail["input"]
    if detail["type"] == "value_error":
        return str(detail["ctx"]["error"])
    if value is None:
        return f"{key!r} has no value"
    if detail["type"] == "too_short":
        least = detail["ctx"]["min_length"]
        return f"{key!r} needs {least} entries at least" if value else f"{key!r} is empty"
    return f"{key}: {_shown(value)} {_plainly(detail['msg'])}"


def unknown_key(key: str, known: Sequence[str], kind: str = "key") -> str:
    """A name that nobody knows, with the nearest one that is known."""
    hint = methods.suggestion(key, known).strip()
    return f"unknown {kind} {key!r} ({hint or 'known: ' + (', '.join(known) or 'none')})"


def _plainly(message: str) -> str:
    """pydantic's words without its jargon: ``Input should be a valid dictionary`` is about a mapping here."""
    words = {"Input ": "", "valid dictionary": "mapping", "valid ": "", "integer": "whole number", "a tuple": "a list"}
    for jargon, plain in words.items():
        message = message.replace(jargon, plain)
    return message


def _shown(value: Any) -> str:
    """The value as the user may recognise it."""
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) < 60 else text[:50] + "..."
