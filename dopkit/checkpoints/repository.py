"""A model in a Hub repository at a pinned commit, through huggingface_hub's cache.

Opening takes a file list, ``config.json``, an index and the headers: kilobytes. Weights come with ``fetch``.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dopkit import hub
from dopkit.checkpoints import files, reading
from dopkit.checkpoints.checkpoint import Checkpoint
from dopkit.checkpoints.folder import parse_config
from dopkit.checkpoints.headers import read_specs
from dopkit.checkpoints.reading import PickledFiles, SafetensorsFiles
from dopkit.errors import CheckpointError, Problem
from dopkit.refs import ModelRef
from dopkit.specs import TensorSpec, header_length, parse_header

if TYPE_CHECKING:
    import torch

_FIRST_READ = 100_000  # bytes; holds the whole header of most files, so one request is enough


class HubCheckpoint(Checkpoint):
    """See ``open_repository``."""

    def __init__(
        self, ref: ModelRef, sizes: Mapping[str, int], specs: Mapping[str, TensorSpec], config: dict[str, Any] | None
    ) -> None:
        super().__init__(ref, specs, config, files.side_files(sizes), ref.revision or "")
        self._sizes = sizes
        self._weight_files = sorted({spec.file for spec in specs.values()})
        self._weights: SafetensorsFiles | PickledFiles | None = None
        self._fetching = threading.Lock()

    @property
    def download_bytes(self) -> int:
        return sum(self._sizes[file] for file in self._weight_files if hub.cached(self.ref, file) is None)

    def fetch(self) -> None:
        """Bring the weight files into the cache. Raises HubError, and CheckpointError when one there is damaged."""
        paths = {file: hub.fetch(self.ref, file) for file in self._weight_files}
        for file, path in paths.items():
            if path.stat().st_size != self._sizes[file]:
                raise CheckpointError(f"{self.ref.short}: {file} in the cache has the wrong size", [_damaged(self.ref)])
        pickled = any(spec.offset < 0 for spec in self.specs.values())
        self._weights = PickledFiles(paths) if pickled else SafetensorsFiles(paths)

    def read(self, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
        with self._fetching:
            if self._weights is None:
                self.fetch()
        assert self._weights is not None
        return self._weights.read(self.specs[name], rows)

    def side_file(self, name: str) -> Path:
        if name not in self._sizes:
            raise FileNotFoundError(name)
        return hub.fetch(self.ref, name)

    def close(self) -> None:
        if self._weights is not None:
            self._weights.close()


def open_repository(ref: ModelRef) -> HubCheckpoint:
    """Open a pinned Hub repository from its headers. Raises HubError, CheckpointError."""
    sizes = hub.files(ref)
    shown = ref.short

    def read_text(file: str) -> str:
        return files.read_text(hub.fetch(ref, file), shown)

    def read_header(kind: str, file: str) -> Mapping[str, TensorSpec]:
        return (_pickled_header if kind == files.PICKLE else _header)(ref, file, sizes[file])

    specs = read_specs(sizes, shown, read_text, read_header)
    config = parse_config(read_text("config.json"), shown) if "config.json" in sizes else None
    return HubCheckpoint(ref, sizes, specs, config)


def _header(ref: ModelRef, file: str, size: int) -> dict[str, TensorSpec]:
    path = hub.cached(ref, file)
    if path is not None:
        return reading.read_header(path, file)[1]
    shown = f"{ref.short}/{file}"
    first = hub.read_range(ref, file, 0, min(size, _FIRST_READ))
    end = 8 + header_length(first, shown, size)
    if end > len(first):
        first += hub.read_range(ref, file, len(first), end)
    return parse_header(first[8:end], file, size, shown)


def _pickled_header(ref: ModelRef, file: str, size: int) -> dict[str, TensorSpec]:
    path = hub.cached(ref, file)
    if path is None:
        what = f"{file} is a pickle: it has no header, so nothing can be checked before it is downloaded"
        remedy = f"`hf download {ref.repo} --revision {ref.revision}` first."
        raise CheckpointError(f"{ref.short} has no safetensors", [Problem("", what, remedy)])
    return PickledFiles({file: path}).header(file)


def _damaged(ref: ModelRef) -> Problem:
    return Problem("", f"Remove it from the cache (`hf cache rm model/{ref.repo}`) and run again.")
