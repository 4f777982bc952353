"""A model in a Hub repository at a pinned commit, through huggingface_hub's cache.

Opening takes a file list, ``config.json``, an index and the headers: kilobytes. Weights come with ``fetch``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dopkit import hub
from dopkit.checkpoints import files
from dopkit.checkpoints.checkpoint import Checkpoint
from dopkit.checkpoints.folder import parse_config
from dopkit.checkpoints.reading import PickledFiles, SafetensorsFiles, read_header
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

    @property
    def download_bytes(self) -> int:
        return sum(self._sizes[file] for file in self._weight_files if hub.cached(self.ref, file) is None)

    def fetch(self) -> None:
        paths = {file: hub.fetch(self.ref, file) for file in self._weight_files}
        for file, path in paths.items():
            if path.stat().st_size != self._sizes[file]:
                raise CheckpointError(
                    f"{self.ref.short}: {file} in the cache has the wrong size", [Problem("", _DAMAGED)]
                )
        pickled = any(spec.offset < 0 for spec in self.specs.values())
        self._weights = PickledFiles(paths) if pickled else SafetensorsFiles(paths)

    def read(self, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
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


_DAMAGED = "Remove the repository from the cache (`hf cache rm`) and run again."


def open_repository(ref: ModelRef) -> HubCheckpoint:
    """Open a pinned Hub repository from its headers. Raises HubError, CheckpointError."""
    sizes = hub.files(ref)
    shown = ref.short
    found = files.find_weights(sizes, shown)
    weight_map: dict[str, str] = {}
    if found.index is not None:
        text = hub.fetch(ref, found.index).read_text(encoding="utf-8")
        weight_map = files.read_index(text, found.index, sizes, shown)
    weight_files = sorted(set(weight_map.values())) or list(found.files)
    specs: dict[str, TensorSpec] = {}
    for file in weight_files:
        read = _pickled_header if found.kind == files.PICKLE else _header
        for name, spec in read(ref, file, sizes[file]).items():
            if name in specs:
                raise CheckpointError(f"{shown}: {name} is in two of its files")
            specs[name] = spec
    if missing := sorted(weight_map.keys() - specs.keys()):
        raise CheckpointError(f"{shown}: the index names {missing[0]}, which is in none of the files")
    config = None
    if "config.json" in sizes:
        config = parse_config(hub.fetch(ref, "config.json").read_text(encoding="utf-8"), shown)
    return HubCheckpoint(ref, sizes, specs, config)


def _header(ref: ModelRef, file: str, size: int) -> dict[str, TensorSpec]:
    path = hub.cached(ref, file)
    if path is not None:
        return read_header(path, file)[1]
    first = hub.read_range(ref, file, 0, min(size, _FIRST_READ))
    end = 8 + header_length(first, f"{ref.short}/{file}", size)
    if end > len(first):
        first += hub.read_range(ref, file, len(first), end)
    specs = parse_header(first[8:end], f"{ref.short}/{file}", size)
    return {name: TensorSpec(name, spec.dtype, spec.shape, file, spec.offset) for name, spec in specs.items()}


def _pickled_header(ref: ModelRef, file: str, size: int) -> dict[str, TensorSpec]:
    path = hub.cached(ref, file)
    if path is None:
        what = f"{file} is a pickle: it has no header, so nothing can be checked before it is downloaded"
        raise CheckpointError(
            f"{ref.short} has no safetensors", [Problem("", what, f"`hf download {ref.repo}` first.")]
        )
    return PickledFiles({file: path}).specs
