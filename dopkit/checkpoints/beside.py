"""Tensors that belong to a model's own, one for each, in a file, a folder or a repository: its Fisher information.

Read like a model, but for the names of the files: those of weights are never taken for it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from dopkit import hub
from dopkit.checkpoints import files
from dopkit.checkpoints.checkpoint import Checkpoint
from dopkit.checkpoints.folder import file_names, open_folder
from dopkit.checkpoints.optimizer import MOMENTS, open_optimizer
from dopkit.checkpoints.pickles import OnlyPickles
from dopkit.checkpoints.repository import open_repository
from dopkit.errors import CheckpointError, Problem
from dopkit.refs import ModelRef
from dopkit.specs import TensorSpec

# What a folder or repository is looked through for; the first that is there counts.
FILES = ("fisher.safetensors", "fisher.safetensors.index.json", "optimizer.pt")
# An optimizer's state as safetensors: beside the second moments it holds other tensors of the same parameters.
_MOMENTS = re.compile(rf"(?:optim(?:izer)?\.)?(?:state\.)?(?:{MOMENTS}\.(?P<behind>.+)|(?P<before>.+)\.{MOMENTS})")


def open_beside(ref: ModelRef, config: Mapping[str, Any] | None) -> Checkpoint:
    """Open what ``ref``, pinned, names, from headers alone; ``config`` is of the model that it belongs to.

    Raises CheckpointError, HubError; OnlyPickles for an optimizer's state on the Hub that is not here yet.
    """
    opened = _open_local(ref, config) if ref.folder is not None else _open_on_the_hub(ref, config)
    opened.specs = _moments(opened.specs)
    return opened


def _open_local(ref: ModelRef, config: Mapping[str, Any] | None) -> Checkpoint:
    path = ref.folder
    assert path is not None
    if path.is_dir():
        path = path / _pick(ref, file_names(path))
    if not path.is_file():
        raise CheckpointError(f"{ref}: there is no such file or folder", [Problem("", f"looked for {path}")])
    if _is_safetensors(path.name):
        return open_folder(ref, path.parent, ((path.name, files.SAFETENSORS),))
    return open_optimizer(ref, path, config)


def _open_on_the_hub(ref: ModelRef, config: Mapping[str, Any] | None) -> Checkpoint:
    sizes = hub.files(ref)
    file = _pick(ref, sizes)
    if _is_safetensors(file):
        return open_repository(ref, ((file, files.SAFETENSORS),))
    path = hub.cached(ref, file)
    if path is None:
        raise OnlyPickles(ref, {file: sizes[file]})
    return open_optimizer(ref, path, config)


def _pick(ref: ModelRef, names: Collection[str]) -> str:
    found = next((name for name in FILES if name in names), None)
    if found is None:
        what = f"none of {', '.join(FILES)} is there"
        raise CheckpointError(
            f"{ref.short} holds no {ref.part}", [Problem("", what, "docs/methods.md says how to make one.")]
        )
    return found


def _is_safetensors(name: str) -> bool:
    return name.endswith((".safetensors", ".safetensors.index.json"))


def _moments(specs: Mapping[str, TensorSpec]) -> Mapping[str, TensorSpec]:
    """The second moments under the names of what they are moments of, where there are any; else all as they are."""
    found = {match["behind"] or match["before"]: spec for name, spec in specs.items()
             if (match := _MOMENTS.fullmatch(name))}  # fmt: skip
    return found or specs
