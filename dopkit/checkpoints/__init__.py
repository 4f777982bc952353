"""Models as sources of tensors: a folder or a Hub repository behind one interface."""

from __future__ import annotations

from dopkit.checkpoints.adapter import AdapterCheckpoint, base_named, open_adapter
from dopkit.checkpoints.beside import open_beside
from dopkit.checkpoints.checkpoint import Checkpoint
from dopkit.checkpoints.files import IsAdapter
from dopkit.checkpoints.folder import open_folder
from dopkit.checkpoints.pickles import OnlyPickles
from dopkit.checkpoints.repository import open_repository
from dopkit.checkpoints.shared import Shared
from dopkit.refs import ModelRef

__all__ = [
    "AdapterCheckpoint", "Checkpoint", "IsAdapter", "OnlyPickles", "Shared", "Shelf", "base_named", "open_beside",
    "open_checkpoint",
]  # fmt: skip


def open_checkpoint(ref: ModelRef) -> Checkpoint:
    """Open a model from its headers alone; a Hub ref must be pinned. Raises CheckpointError, HubError.

    IsAdapter says that there is an adapter alone, of which a base must be named.
    """
    return Shelf().open(ref)


class Shelf:
    """Models that are opened to be read together: what several adapters stand on is opened and read once."""

    def __init__(self) -> None:
        self._plain: dict[tuple[str, ...], Checkpoint] = {}
        self._shared: dict[tuple[str, ...], Shared] = {}

    def open(self, ref: ModelRef) -> Checkpoint:
        """See ``open_checkpoint``. What was opened before as it is must be taken again from ``latest``."""
        if ref.adapter is None:
            return self._open_plain(ref)
        base = self._open_plain(ref.without_adapter)
        return open_adapter(ref, self.shared(base))

    def _open_plain(self, ref: ModelRef) -> Checkpoint:
        if ref.key not in self._plain:
            self._plain[ref.key] = open_folder(ref, ref.folder) if ref.folder is not None else open_repository(ref)
        return self._plain[ref.key]

    def shared(self, checkpoint: Checkpoint) -> Shared:
        """The same model, for several to read together."""
        if checkpoint.ref.key not in self._shared:
            self._shared[checkpoint.ref.key] = Shared(checkpoint)
        return self._shared[checkpoint.ref.key]

    def latest(self, checkpoint: Checkpoint) -> Checkpoint:
        """The same model, read together with the adapters that were opened on it."""
        return self._shared.get(checkpoint.ref.key, checkpoint)
