"""What is said when the disk does not take something."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from dopkit.errors import OutputError, Problem

_FULL = "Make room and run the same command again: it goes on from here."
_REMEDIES = {errno.ENOSPC: _FULL, errno.EDQUOT: _FULL}


@contextmanager
def writing(place: Path, remedies: Mapping[int, str] | None = None) -> Iterator[None]:
    """Turn what the system says about a file or folder into an OutputError; ``remedies`` by its number for that."""
    try:
        yield
    except OSError as error:
        remedy = {**_REMEDIES, **(remedies or {})}.get(error.errno or 0, "")
        problem = Problem("", error.strerror or str(error), remedy)
        raise OutputError(f"cannot write to {place}", [problem]) from error
