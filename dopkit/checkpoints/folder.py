"""A model in a local folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dopkit.checkpoints import files
from dopkit.checkpoints.checkpoint import Checkpoint
from dopkit.checkpoints.reading import PickledFiles, SafetensorsFiles, read_header
from dopkit.errors import CheckpointError, Problem
from dopkit.refs import ModelRef
from dopkit.specs import TensorSpec

if TYPE_CHECKING:
    import torch

_SAMPLES, _SAMPLE_BYTES = 64, 4096


class FolderCheckpoint(Checkpoint):
    """See ``open_folder``."""

    def __init__(
        self,
        ref: ModelRef,
        folder: Path,
        weights: SafetensorsFiles | PickledFiles,
        specs: Mapping[str, TensorSpec],
        identity: str,
        state: str,
    ) -> None:
        names = file_names(folder)
        super().__init__(ref, specs, read_config(folder, str(ref)), files.side_files(names), identity)
        self._folder = folder
        self._weights = weights
        self._state = state

    @property
    def state(self) -> str:
        return self._state

    def read(self, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
        return self._weights.read(self.specs[name], rows)

    def side_file(self, name: str) -> Path:
        path = self._folder / name
        if not path.is_file():
            raise FileNotFoundError(path)
        return path

    def close(self) -> None:
        self._weights.close()


def open_folder(ref: ModelRef, folder: Path) -> FolderCheckpoint:
    """Open the model in ``folder``. Raises CheckpointError when there is none, or its files are damaged."""
    if not folder.is_dir():
        what = "it is a file" if folder.exists() else "there is no such folder"
        raise CheckpointError(f"{ref}: {what}", [Problem("", f"looked for {folder}")])
    names = file_names(folder)
    found = files.find_weights(names, str(ref))
    weight_map = None
    if found.index is not None:
        weight_map = files.read_index((folder / found.index).read_text(encoding="utf-8"), found.index, names, str(ref))
    shards = sorted(set(weight_map.values())) if weight_map is not None else list(found.files)
    paths = {file: folder / file for file in shards}
    if found.kind == files.PICKLE:
        pickles = PickledFiles(paths)
        digests = [str(path.stat().st_size).encode() for path in paths.values()]
        specs: dict[str, TensorSpec] = pickles.specs
        weights: SafetensorsFiles | PickledFiles = pickles
    else:
        specs, digests = _headers(paths, str(ref))
        weights = SafetensorsFiles(paths)
    if missing := sorted((weight_map or {}).keys() - specs.keys()):
        raise CheckpointError(f"{ref}: the index names {missing[0]}, which is in none of the files")
    times = "".join(f":{path.stat().st_mtime_ns}" for path in paths.values())
    identity = "sampled:" + hashlib.sha256(b"\0".join([*digests, *map(_samples, paths.values())])).hexdigest()
    return FolderCheckpoint(ref, folder, weights, specs, identity, identity + times)


def _headers(paths: Mapping[str, Path], shown: str) -> tuple[dict[str, TensorSpec], list[bytes]]:
    specs: dict[str, TensorSpec] = {}
    digests = []
    for file, path in paths.items():
        raw, found = read_header(path, file)
        if twice := specs.keys() & found.keys():
            raise CheckpointError(f"{shown}: {min(twice)} is in two of its files")
        specs.update(found)
        digests += [file.encode(), raw]
    return specs, digests


def _samples(path: Path) -> bytes:
    """Some bytes from all over a file: enough to tell one model from another without reading it all."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        parts = []
        for index in range(_SAMPLES):
            stream.seek(index * size // _SAMPLES)
            parts.append(stream.read(_SAMPLE_BYTES))
    return b"".join(parts)


def file_names(folder: Path) -> list[str]:
    """The files of a folder and of its sub-folders' first floor, as posix names."""
    found = [*folder.glob("*"), *folder.glob("*/*")]
    return sorted(path.relative_to(folder).as_posix() for path in found if path.is_file())


def read_config(folder: Path, shown: str) -> dict[str, Any] | None:
    """``config.json`` as data, None when there is none. Raises CheckpointError when it is no JSON object."""
    path = folder / "config.json"
    if not path.is_file():
        return None
    return parse_config(path.read_text(encoding="utf-8"), shown)


def parse_config(text: str, shown: str) -> dict[str, Any]:
    """The text of a ``config.json`` as data. Raises CheckpointError."""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{shown}: config.json is not valid JSON ({error})") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{shown}: config.json is not a JSON object")
    return config
