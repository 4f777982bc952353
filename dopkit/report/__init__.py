"""The report of a merge: one HTML page that needs nothing but itself, and asks nobody for anything.

``markup`` escapes, ``scales`` and ``charts`` draw, ``layers``, ``scores`` and ``relations`` sort numbers, ``sections``
are the parts of the page, ``page`` puts them together. Loads no torch.
"""

from __future__ import annotations

from pathlib import Path

from dopkit.report.data import FolderData, read
from dopkit.report.page import render
from dopkit.writer import REPORT, write_text

__all__ = ["FolderData", "read", "render", "write"]


def write(folder: Path, file: Path | None = None) -> Path:
    """Write the report of a merged folder to ``file`` (FOLDER/report.html), replacing an earlier one. Returns where.

    Raises OutputError when the folder is no merged model, a file in it is damaged, or the page cannot be written.
    """
    target = folder / REPORT if file is None else file
    write_text(target, render(read(folder)))
    return target
