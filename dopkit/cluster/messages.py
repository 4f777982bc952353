"""What the leading process and its workers say to each other. Plain data: it travels by pickle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dopkit import errors
from dopkit.errors import DopkitError, MergeError, Problem


@dataclass(frozen=True)
class Batch:
    """Jobs for a worker, by name, and what it must know of the pass."""

    jobs: Sequence[str]
    message: Any = None


@dataclass(frozen=True)
class Began:
    """A worker has this tensor in hand."""

    name: str


@dataclass(frozen=True)
class Done:
    """A tensor is made; it counts when it is journaled."""

    name: str


@dataclass(frozen=True)
class Piece:
    """Bytes of a tensor, from a worker that cannot write them itself."""

    place: str  # sub-folder of the working folder
    name: str
    position: int  # of the first of these bytes in the tensor
    data: bytes


@dataclass(frozen=True)
class Journaled:
    """A tensor is complete: what the journal will say of it."""

    entry: dict[str, Any]


@dataclass(frozen=True)
class Over:
    """The batch is done, or has failed."""

    error: Failure | None = None


@dataclass(frozen=True)
class Failure:
    """One of our own errors, as data."""

    kind: str
    headline: str
    problems: tuple[Problem, ...]

    @classmethod
    def of(cls, error: DopkitError) -> Failure:
        """Of a subclass that the tree does not show, the nearest class that it does."""
        kind = next(one.__name__ for one in type(error).__mro__ if one.__module__ == errors.__name__)
        return cls(kind, error.headline, error.problems)

    def error(self) -> DopkitError:
        kind = getattr(errors, self.kind, MergeError)
        made: DopkitError = kind(self.headline, self.problems)
        return made


Said = Began | Done | Piece | Journaled | Over


@dataclass(frozen=True)
class Greeting:
    """A worker has opened the merge, or could not."""

    shares: bool = False  # it finds the working folder
    engine: str = ""  # what decides the last bits of its results
    fingerprint: str = ""  # of its plan
    version: str = ""  # of dopkit
    error: Failure | None = None
