"""Models as sources of tensors: a folder or a Hub repository behind one interface."""

from __future__ import annotations

from dopkit.checkpoints.checkpoint import Checkpoint
from dopkit.checkpoints.folder import open_folder
from dopkit.checkpoints.pickles import OnlyPickles
from dopkit.checkpoints.repository import open_repository
from dopkit.errors import CheckpointError, Problem
from dopkit.refs import ModelRef

__all__ = ["Checkpoint", "OnlyPickles", "open_checkpoint"]


def open_checkpoint(ref: ModelRef) -> Checkpoint:
    """Open a model from its headers alone; a Hub ref must be pinned. Raises CheckpointError, HubError."""
    if ref.adapter is not None:
        remedy = "Apply the adapter first (peft: merge_and_unload, then save_pretrained) and name the result."
        raise CheckpointError(f"{ref}: adapters cannot be merged as models yet", [Problem("", "", remedy)])
    return open_folder(ref, ref.folder) if ref.folder is not None else open_repository(ref)
