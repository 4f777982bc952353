"""The second moments that AdamW has kept of a model's gradients, out of the ``optimizer.pt`` of a training run.

They are running means of squared gradients: an estimate of the Fisher's diagonal that costs nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dopkit import skeleton
from dopkit.checkpoints.checkpoint import Checkpoint
from dopkit.checkpoints.folder import samples
from dopkit.checkpoints.reading import copied, load_pickled, pickled_spec
from dopkit.errors import CheckpointError, Problem
from dopkit.refs import ModelRef

if TYPE_CHECKING:
    import torch

MOMENTS = "exp_avg_sq"
_REMEDY = "Write a safetensors file with the model's names instead: docs/methods.md says how."


class OptimizerCheckpoint(Checkpoint):
    """See ``open_optimizer``."""

    def __init__(
        self, ref: ModelRef, path: Path, tensors: Mapping[str, torch.Tensor], identity: str, state: str
    ) -> None:
        specs = {name: pickled_spec(name, tensor, path.name, path) for name, tensor in tensors.items()}
        super().__init__(ref, specs, None, [], identity)
        self._tensors = dict(tensors)
        self._state = state

    @property
    def state(self) -> str:
        return self._state

    def read(self, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
        return copied(self.specs[name], self._tensors[name], rows)

    def side_file(self, name: str) -> Path:
        raise FileNotFoundError(name)


def open_optimizer(ref: ModelRef, path: Path, config: Mapping[str, Any] | None) -> OptimizerCheckpoint:
    """The second moments in a file that holds an optimizer's state, by name.

    The file numbers parameters; ``config`` is of the model that was trained, whose class tells their names. Nothing of
    it is read into memory. Raises CheckpointError.
    """
    state = load_pickled(path)
    try:
        tensors = dict(_named(state, config))
    except ValueError as error:
        what = Problem(path.name, str(error), _REMEDY)
        raise CheckpointError(f"{ref.short}: its second moments cannot be told apart", [what]) from None
    facts = path.stat()
    identity = ref.revision or "sampled:" + hashlib.sha256(str(facts.st_size).encode() + samples(path)).hexdigest()
    return OptimizerCheckpoint(ref, path, tensors, identity, f"{identity}:{facts.st_mtime_ns}")


def _named(state: Any, config: Mapping[str, Any] | None) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and second moments. Raises ValueError with what is wrong, as a clause."""
    match state:
        case {"state": dict(entries), "param_groups": list(groups)}:
            pass
        case _:
            raise ValueError("it is not the state of an optimizer: it has no 'state' and 'param_groups'")
    try:
        numbers = [list(group["params"]) for group in groups]
        given = [group.get("param_names") for group in groups]
    except (KeyError, TypeError, AttributeError):
        raise ValueError("its 'param_groups' are damaged") from None
    entries = {number: entry for number, entry in entries.items() if isinstance(entry, dict)}
    moments = {number: entry[MOMENTS] for number, entry in entries.items() if _is_tensor(entry.get(MOMENTS))}
    if not moments:
        raise ValueError(f"it holds no {MOMENTS}, which AdamW keeps for every parameter")
    if all(given):
        names = [list(group) for group in given]
    else:
        known = [[moments.get(number) for number in group] for group in numbers]
        shapes = [[None if moment is None else tuple(moment.shape) for moment in group] for group in known]
        names = skeleton.trained_names(config, shapes)
    for own, group in zip(names, numbers, strict=True):
        for name, number in zip(own, group, strict=True):
            if number in moments:
                yield name, moments[number]


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)
