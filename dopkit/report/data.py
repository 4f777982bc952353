"""What a report is made of: the receipt of a merged folder, its recipe, and the shapes of its tensors.

Reads small files and the headers of weight files; knows no page.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dopkit import receipt, specs
from dopkit.errors import CheckpointError, OutputError
from dopkit.writer import EVALUATION


@dataclass(frozen=True)
class FolderData:
    """Everything that ``render`` may know of a merged folder."""

    name: str
    receipt: Mapping[str, Any]  # with "evaluation" and "relations" where they are known
    recipe: str = ""  # the text of its file
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # of the merged tensors, as far as known


def read(folder: Path) -> FolderData:
    """Read a merged folder. Its evaluation file, if there is one, goes before what the receipt holds.

    Raises OutputError when the folder is no merged model, or a file in it is damaged.
    """
    done = receipt.read(folder)
    path = folder / EVALUATION
    if path.is_file():
        done["evaluation"] = _json(path)
    recipe = folder / receipt.RECIPE_FILE
    text = recipe.read_text(encoding="utf-8", errors="replace") if recipe.is_file() else ""
    return FolderData(folder.resolve().name, done, text, _shapes(folder, [shard["file"] for shard in done["shards"]]))


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise OutputError(f"{path} is damaged: {error}") from None


def _shapes(folder: Path, files: list[str]) -> dict[str, tuple[int, ...]]:
    """Shapes from the weight files' headers. A file that is elsewhere, or cannot be read, tells none."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        path = folder / Path(file).name
        try:
            size = path.stat().st_size
            with path.open("rb") as stream:
                raw = stream.read(specs.header_length(stream.read(8), str(path), size))
            found = specs.parse_header(raw, path.name, size, str(path))
        except (OSError, CheckpointError):
            continue
        shapes |= {name: spec.shape for name, spec in found.items()}
    return shapes
