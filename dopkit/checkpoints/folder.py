"""A model in a local folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dopkit.checkpoints import files, reading
from dopkit.checkpoints.checkpoint import Checkpoint
from dopkit.checkpoints.headers import read_specs
from dopkit.checkpoints.reading import PickledFiles, SafetensorsFiles
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
        times: Mapping[str, int],
    ) -> None:
        config = read_config(folder, str(ref))
        super().__init__(ref, specs, config, files.side_files(file_names(folder)), identity)
        self._folder = folder
        self._weights = weights
        self._times = times

    @property
    def state(self) -> str:
        """The identity, and when the weight files were last written to."""
        return self.identity + "".join(f":{self._times[file]}" for file in sorted(self._times))

    @property
    def changed(self) -> bool:
        """One that is gone does not count: what was open goes on, and what was not says so itself."""
        there = [file for file in self._times if (self._folder / file).exists()]
        return any(_written(self._folder / file) != self._times[file] for file in there)

    def read(self, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
        return self._weights.read(self.specs[name], rows)

    def side_file(self, name: str) -> Path:
        path = self._folder / name
        if not path.is_file():
            raise FileNotFoundError(path)
        return path

    def digests(self, name: str) -> frozenset[str]:
        return files.digests(self.side_file(name))

    def close(self) -> None:
        self._weights.close()


def open_folder(ref: ModelRef, folder: Path, wanted: files.Names = files.MODEL) -> FolderCheckpoint:
    """Open the model in ``folder``, of which the ``wanted`` files hold weights.

    Raises CheckpointError when there is none, or its files are damaged.
    """
    if not folder.is_dir():
        what = "it is a file" if folder.exists() else "there is no such folder"
        raise CheckpointError(f"{ref}: {what}", [Problem("", f"looked for {folder}")])
    names = file_names(folder)
    paths = {name: folder / name for name in names}
    safetensors, pickles = SafetensorsFiles(paths), PickledFiles(paths)
    digests: dict[str, bytes] = {}  # of the weight files

    def read_header(kind: str, file: str) -> Mapping[str, TensorSpec]:
        if kind == files.PICKLE:
            specs = pickles.header(file)
            digests[file] = str(paths[file].stat().st_size).encode()
        else:
            digests[file], specs = reading.read_header(paths[file], file)
        return specs

    specs = read_specs(names, str(ref), lambda file: files.read_text(paths[file], str(ref)), read_header, wanted)
    weight_files = sorted(digests)
    facts = [part for file in weight_files for part in (file.encode(), digests[file], samples(paths[file]))]
    identity = "sampled:" + hashlib.sha256(b"\0".join(facts)).hexdigest()
    times = {file: _written(paths[file]) for file in weight_files}
    pickled = any(spec.offset < 0 for spec in specs.values())
    return FolderCheckpoint(ref, folder, pickles if pickled else safetensors, specs, identity, times)


def _written(path: Path) -> int:
    """When the file was last written to."""
    return path.stat().st_mtime_ns


def samples(path: Path) -> bytes:
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
    return parse_config(files.read_text(path, shown), shown)


def parse_config(text: str, shown: str) -> dict[str, Any]:
    """The text of a ``config.json`` as data. Raises CheckpointError."""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{shown}: config.json is not valid JSON ({error})") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{shown}: config.json is not a JSON object")
    return config
