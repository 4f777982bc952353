"""Answers of the model classes, kept on disk between runs: importing transformers takes longer than most of a plan.

An answer depends on nothing but the question, the versions of the libraries that hold the classes, and the code of this
package and of the roles: all are in its key, so that an old answer is never taken for a new one. What could not be
answered is asked again every time. A folder that cannot be read or written is none; nobody is told. Knows no model
classes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TypeVar

from pydantic import TypeAdapter

from dopkit import roles

T = TypeVar("T")

FOLDER = "DOPKIT_CACHE"  # the variable that names another folder; empty, nothing is kept
_LIBRARIES = ("transformers", "torch")
_MOST = 500  # answers that are kept, the last ones that were wanted


def recall(question: Sequence[object], kind: type[T], ask: Callable[[], T], sure: Callable[[T], bool]) -> T:
    """The answer to a ``question`` (plain data), of the dataclass ``kind``: the one that is kept, or that of ``ask``.

    An answer that is ``sure`` is kept.
    """
    place = _place(question)
    if place is None:
        return ask()
    adapter = TypeAdapter(kind)
    with suppress(OSError, ValueError):
        found = adapter.validate_json(place.read_bytes())
        with suppress(OSError):  # a folder that may only be read is good enough
            os.utime(place)
        return found
    answer = ask()
    if sure(answer):
        with suppress(OSError):
            _keep(place, adapter.dump_json(answer))
    return answer


def _place(question: Sequence[object]) -> Path | None:
    folder, versions = _folder(), _versions()
    if folder is None or versions is None:
        return None
    text = json.dumps([versions, question], default=str)
    return folder / f"{hashlib.sha256(text.encode()).hexdigest()}.json"


def _folder() -> Path | None:
    given = os.environ.get(FOLDER)
    if given == "":
        return None
    place = given or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "dopkit")
    return None if place.startswith("~") else Path(place) / "skeletons"  # there is no home


@cache
def _versions() -> list[str] | None:
    """What answers depend on beside the question; None where that cannot be told, as of a library in development."""
    try:
        found = [metadata.version(library) for library in _LIBRARIES]
    except metadata.PackageNotFoundError:
        return None
    if any("dev" in version for version in found):
        return None
    code = hashlib.sha256()
    for path in [Path(roles.__file__), *sorted(Path(__file__).parent.glob("*.py"))]:
        code.update(path.read_bytes())
    return [*found, code.hexdigest()]


def _keep(place: Path, answer: bytes) -> None:
    """Write an answer, whole or not at all, and let go of those that were not wanted for longest."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=place.parent, suffix=".new", delete=False) as stream:
        try:
            stream.write(answer)
            stream.flush()
            os.replace(stream.name, place)
        except OSError:
            os.unlink(stream.name)
            raise
    there = sorted(place.parent.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in there[_MOST:]:
        path.unlink(missing_ok=True)
