"""The models of earlier steps beside the last one: finished here, and carried along when a merged model grows.

A step is a whole model folder, ``steps/02`` the one after two models; the last step is the merged folder itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from dopkit.planning.outputs import STAGES, STATE, STEPS, step_folder
from dopkit.writer import copy_file

# Of a merged folder, what belongs to the whole and not to the model that it is.
_OF_THE_WHOLE = ("heads", STEPS, STATE, STAGES)


def saved(folder: Path) -> list[int]:
    """The steps kept in a merged folder, in order; the last step, which is the folder itself, is not among them."""
    names = [path.name for path in (folder / STEPS).glob("*") if path.is_dir() and path.name.isdecimal()]
    return sorted(map(int, names))


def carry_over(merged: Path, target: Path, step: int) -> None:
    """Bring the steps of a merged folder, and the folder itself as the model after ``step``, into ``target``.

    Files are linked where the disk allows it, else copied. What is there already stays. Raises OutputError.
    """
    for earlier in saved(merged):
        _take_along(merged / step_folder(earlier), target / step_folder(earlier))
    _take_along(merged, target / step_folder(step), _is_of_a_model)


def _is_of_a_model(path: Path) -> bool:
    """Whether a file of a merged folder is needed to load its model."""
    first, own = path.parts[0], path.name
    of_it = first not in _OF_THE_WHOLE and not first.startswith(".")
    return of_it and not own.startswith(("dopkit_", "report.")) and own != "README.md"


def _take_along(source: Path, target: Path, wanted: Callable[[Path], bool] = lambda path: True) -> None:
    for path in _files(source):
        if wanted(path) and not (target / path).exists():
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            _link(source / path, target / path)


def _files(folder: Path) -> Iterable[Path]:
    """Relative paths; what a download cache has linked counts as a file."""
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def _link(source: Path, target: Path) -> None:
    try:
        os.link(os.path.realpath(source), target)
    except OSError:  # another disk, or one without links
        copy_file(source, target)
