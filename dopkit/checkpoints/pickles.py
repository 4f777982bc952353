"""Repositories that hold only ``.bin`` files: a pickle has no header, so it must be here before it can be planned."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dopkit import hub
from dopkit.checkpoints import files
from dopkit.errors import CheckpointError, Problem
from dopkit.refs import ModelRef
from dopkit.units import show_size


class OnlyPickles(CheckpointError):
    """A repository without safetensors whose pickles are not in the cache yet; ``fetch`` brings them."""

    def __init__(self, ref: ModelRef, missing: Mapping[str, int]) -> None:
        self.ref = ref
        self.missing = tuple(missing)
        self.nbytes = sum(missing.values())
        what = f"its {self.size} of .bin files have no headers and must be downloaded before it can be planned"
        remedy = f"`dopkit run` downloads them, and so does `hf download {ref.repo} --revision {ref.revision}`."
        super().__init__(f"{ref.short} has no safetensors", [Problem("", what, remedy)])

    @property
    def size(self) -> str:
        return show_size(self.nbytes)

    def fetch(self) -> None:
        """Bring the pickles into the cache. Raises HubError."""
        for file in self.missing:
            hub.fetch(self.ref, file)


def require_pickles(
    ref: ModelRef, sizes: Mapping[str, int], read_text: Callable[[str], str], wanted: files.Names = files.MODEL
) -> None:
    """Raise OnlyPickles when the weights of a pinned repository are pickles that the cache does not hold."""
    found = files.find_weights(sizes, ref.short, wanted)
    if found.kind != files.PICKLE:
        return
    shards = found.files
    if found.index is not None:
        shards = tuple(sorted(set(files.read_index(read_text(found.index), found.index, sizes, ref.short).values())))
    missing = {file: sizes[file] for file in shards if hub.cached(ref, file) is None}
    if missing:
        raise OnlyPickles(ref, missing)
