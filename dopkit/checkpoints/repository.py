"""A model in a Hub repository at a pinned commit, through huggingface_hub's cache.

Opening takes a file list, ``config.json``, an index and the headers: kilobytes. Weights come with ``fetch``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dopkit import hub
from dopkit.checkpoints import files, reading
from dopkit.checkpoints.checkpoint import Checkpoint
from dopkit.checkpoints.folder import parse_config
from dopkit.checkpoints.headers import read_specs
from dopkit.checkpoints.pickles import require_pickles
from dopkit.checkpoints.reading import PickledFiles, SafetensorsFiles
from dopkit.checkpoints.streamed import StreamedCheckpoint
from dopkit.errors import CheckpointError, Problem
from dopkit.refs import ModelRef
from dopkit.specs import TensorSpec, header_length, parse_header

if TYPE_CHECKING:
    import torch

_FIRST_READ = 100_000  # bytes; holds the whole header of most files, so one request is enough


class HubCheckpoint(Checkpoint):
    """See ``open_repository``."""

    def __init__(
        self,
        ref: ModelRef,
        listing: hub.Listing,
        specs: Mapping[str, TensorSpec],
        config: dict[str, Any] | None,
        remotes: Mapping[str, hub.RemoteFile],
    ) -> None:
        super().__init__(ref, specs, config, files.side_files(listing.sizes), ref.revision or "")
        self._sizes: Mapping[str, int] = listing.sizes
        self._hashes: Mapping[str, str] = listing.hashes
        self._remotes = remotes  # whose addresses may be known from reading headers
        self._weight_files = sorted({spec.file for spec in specs.values()})
        self._streamed: StreamedCheckpoint | None = None
        self._weights: SafetensorsFiles | PickledFiles | None = None
        self._fetching = threading.Lock()

    @property
    def download_bytes(self) -> int:
        return sum(self._sizes[file] for file in self.missing)

    @property
    def missing(self) -> frozenset[str]:
        return frozenset(file for file in self._weight_files if hub.cached(self.ref, file) is None)

    def streamed(self) -> Checkpoint:
        missing = self.missing
        if not missing:
            return self
        if self._streamed is None:  # one for all who read the model
            stored = self._paths(file for file in self._weight_files if file not in missing)
            remotes = {file: self._remotes[file] for file in missing}
            self._streamed = StreamedCheckpoint(self, remotes, SafetensorsFiles(stored))
        return self._streamed

    def fetch(self) -> None:
        """Bring the weight files into the cache. Raises HubError, and CheckpointError when one there is damaged."""
        paths = self._paths(self._weight_files)
        pickled = any(spec.offset < 0 for spec in self.specs.values())
        self._weights = PickledFiles(paths) if pickled else SafetensorsFiles(paths)

    def _paths(self, weight_files: Iterable[str]) -> dict[str, Path]:
        paths = {file: hub.fetch(self.ref, file) for file in weight_files}
        for file, path in paths.items():
            if path.stat().st_size != self._sizes[file]:
                raise CheckpointError(f"{self.ref.short}: {file} in the cache has the wrong size", [_damaged(self.ref)])
        return paths

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

    def digests(self, name: str) -> frozenset[str]:
        path = hub.cached(self.ref, name)
        known = {self._hashes[name]} if name in self._hashes else set()
        return files.digests(path) if path is not None else frozenset(known)

    def close(self) -> None:
        if self._weights is not None:
            self._weights.close()


def open_repository(ref: ModelRef, wanted: files.Names = files.MODEL) -> HubCheckpoint:
    """Open a pinned Hub repository from the headers of its ``wanted`` files. Raises HubError, CheckpointError."""
    listing = hub.listing(ref)
    sizes, shown = listing.sizes, ref.short
    remotes = {file: hub.RemoteFile(ref, file) for file in sizes}

    def read_text(file: str) -> str:
        return files.read_text(hub.fetch(ref, file), shown)

    def read_header(kind: str, file: str) -> Mapping[str, TensorSpec]:
        return _pickled_header(ref, file) if kind == files.PICKLE else _header(remotes[file], ref, file, sizes[file])

    require_pickles(ref, sizes, read_text, wanted)
    specs = read_specs(sizes, shown, read_text, read_header, wanted)
    config = parse_config(read_text("config.json"), shown) if "config.json" in sizes else None
    checkpoint = HubCheckpoint(ref, listing, specs, config, remotes)
    checkpoint.complete = listing.complete
    if listing.repo != ref.repo:
        checkpoint.notes = (f"{ref.repo} is called {listing.repo} now",)
    return checkpoint


def _header(remote: hub.RemoteFile, ref: ModelRef, file: str, size: int) -> dict[str, TensorSpec]:
    path = hub.cached(ref, file)
    if path is not None:
        return reading.read_header(path, file)[1]
    shown = f"{ref.short}/{file}"
    first = remote.read(0, min(size, _FIRST_READ))
    end = 8 + header_length(first, shown, size)
    if end > len(first):
        first += remote.read(len(first), end)
    return parse_header(first[8:end], file, size, shown)


def _pickled_header(ref: ModelRef, file: str) -> Mapping[str, TensorSpec]:
    return PickledFiles({file: hub.fetch(ref, file)}).header(file)


def _damaged(ref: ModelRef) -> Problem:
    return Problem("", f"Remove it from the cache (`hf cache rm model/{ref.repo}`) and run again.")
