"""The one interface over every kind of source: what a model holds, known from headers, and its tensors one by one.

Nothing here knows other models, roles or methods.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dopkit.refs import ModelRef
from dopkit.specs import TensorSpec

if TYPE_CHECKING:
    import torch


Read = tuple["Checkpoint", str, tuple[int, int] | None]  # no rows: the whole tensor


class Checkpoint(ABC):
    """An opened model. Opening reads headers, never weights."""

    streams = False  # whether reads come over the network
    remembers = False  # whether the same read again, with no other in between, costs nothing

    def __init__(
        self,
        ref: ModelRef,
        specs: Mapping[str, TensorSpec],
        config: Mapping[str, Any] | None,
        side_files: list[str],
        identity: str,
    ) -> None:
        self.ref = ref
        self.specs = specs
        self.config = config  # config.json as data; None when there is none
        self.side_files = side_files  # what belongs beside a merged model, from this one
        # For the receipt: the commit of a Hub repository; of a folder a hash of its headers and of samples.
        self.identity = identity
        self.notes: tuple[str, ...] = ()  # what the plan should tell its reader about this source
        self.complete = True  # False offline: side files that the cache lacks are not known

    @property
    def state(self) -> str:
        """Changes whenever the weights may have changed: what a resumed run compares."""
        return self.identity

    @property
    def changed(self) -> bool:
        """Whether the weights have been written to since this was opened; asked of ``sources`` only."""
        return False

    @property
    def download_bytes(self) -> int:
        """What ``fetch`` still has to download."""
        return 0

    @property
    def missing(self) -> frozenset[str]:
        """The weight files that ``fetch`` still has to download."""
        return frozenset()

    def streamed(self) -> Checkpoint:
        """The same model with its missing files read over the network, each part when it is needed."""
        return self

    def fetch(self) -> None:  # noqa: B027 - a folder has nothing to fetch
        """Make the weights readable; called once, after the plan is accepted. Raises HubError."""

    def forget(self) -> None:  # noqa: B027
        """Let go of what is remembered of earlier reads."""

    @property
    def sources(self) -> tuple[Checkpoint, ...]:
        """What the model is read from, each downloaded by itself: an adapter and its base are two."""
        return (self,)

    def reads(self, name: str, rows: tuple[int, int] | None) -> Iterator[Read]:
        """What reading a tensor, or some rows of it, reads of which source; of itself where nothing lies behind it."""
        yield self, name, rows

    def pieces(self, name: str, rows: tuple[int, int] | None) -> Iterator[tuple[int, int] | None]:
        """The rows in which such a read is made, one after another: ``reads`` and ``remembers`` are of each of them."""
        yield rows

    def expect(self, reads: Sequence[tuple[str, tuple[int, int] | None]], budget: int) -> None:  # noqa: B027
        """What is going to be read, in this order, and how many bytes of it may be held in memory ahead of time.

        Other reads, before or in between, work all the same.
        """

    @abstractmethod
    def read(self, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
        """The tensor in its own dtype on the CPU, or its rows ``[start, stop)`` along the first axis.

        Safe to call from several threads. Raises CheckpointError when the file is not what its header said, IndexError
        for rows that the tensor does not have. A scalar has one row.
        """

    @abstractmethod
    def side_file(self, name: str) -> Path:
        """A small file of the model (one of ``side_files``, ``README.md`` ...) as a local path.

        Raises FileNotFoundError when the model has none of that name.
        """

    def digests(self, name: str) -> frozenset[str]:
        """Hashes of a small file, for comparison: equal files share one. None are known where it must be fetched."""
        return frozenset()

    def close(self) -> None:  # noqa: B027
        """Let go of open files."""
