"""A model whose embedding and head have the rows of another vocabulary: what the planner and the engine see.

Rows that are its own are read where they lie, run by run; those of tokens that it lacks come from other models.
"""

from __future__ import annotations

import bisect
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dopkit.checkpoints import AdapterCheckpoint, Checkpoint
from dopkit.checkpoints.checkpoint import Read
from dopkit.checkpoints.reading import torch_dtype
from dopkit.specs import TensorSpec
from dopkit.vocabulary.rows import Piece, Place

if TYPE_CHECKING:
    import torch

_BLOCK = 1 << 20  # elements read at once

Rows = tuple[int, int]
Names = Sequence[str | None]  # of one tensor in each of the models; None where one has nothing like it
SideFile = bytes | Callable[[], Path]  # its content, or where it is


class VocabularyCheckpoint(Checkpoint):
    """``source``, one of ``members``, with the rows that ``pieces`` say in each of the tensors of ``names``.

    ``side_files`` take the place of its own of those names; None leaves one out.
    """

    def __init__(
        self,
        source: Checkpoint,
        members: Sequence[Checkpoint],
        pieces: Sequence[Piece],
        names: Mapping[str, Names],
        side_files: Mapping[str, SideFile | None],
    ) -> None:
        kept = {*source.side_files, *side_files} - {name for name, content in side_files.items() if content is None}
        specs = {**source.specs, **gathered_specs(source.specs, names, pieces)}
        super().__init__(source.ref, specs, source.config, sorted(kept), source.identity)
        self.notes, self.complete, self.streams = source.notes, source.complete, source.streams
        self._source = source
        self._members = members
        self._pieces = pieces
        self._starts = [piece.start for piece in pieces]
        self._names = names
        self._side_files = side_files
        self._folder: tempfile.TemporaryDirectory[str] | None = None  # of side files that are made
        self._means: dict[str, torch.Tensor] = {}
        self._lock = threading.RLock()

    @property
    def state(self) -> str:
        return self._source.state

    @property
    def download_bytes(self) -> int:
        return self._source.download_bytes

    @property
    def missing(self) -> frozenset[str]:
        return self._source.missing

    @property
    def sources(self) -> tuple[Checkpoint, ...]:
        return self._source.sources

    def fetch(self) -> None:
        self._source.fetch()

    def streamed(self) -> Checkpoint:
        members = [member.streamed() for member in self._members]
        return VocabularyCheckpoint(self._source.streamed(), members, self._pieces, self._names, self._side_files)

    def reads(self, name: str, rows: Rows | None) -> Iterator[Read]:
        """The mean of all rows is read at once when it is first needed, and not announced."""
        if name not in self._names:
            yield self._source, name, rows
            return
        for piece in self._blocks(name, rows):
            for own, row in self._places(name, piece):
                tensor = self._names[name][own]
                assert tensor is not None
                yield self._members[own], tensor, (row, row + piece.stop - piece.start)

    def read(self, name: str, rows: Rows | None = None) -> torch.Tensor:
        import torch

        if name not in self._names:
            return self._source.read(name, rows)
        start, stop = rows or (0, self.specs[name].rows)
        if not 0 <= start <= stop <= self.specs[name].rows:
            raise IndexError(f"{name} has no rows {start} to {stop}")
        result = torch.empty((stop - start, *self.specs[name].shape[1:]), dtype=self._dtype(name))
        for piece in self._blocks(name, (start, stop)):
            result[piece.start - start : piece.stop - start] = self._piece(name, piece)
        return result

    def _blocks(self, name: str, rows: Rows | None) -> Iterator[Piece]:
        """The pieces of these rows, none of them with more elements than are read at once."""
        spec = self.specs[name]
        step = max(1, _BLOCK * spec.rows // max(1, spec.numel))
        for piece in self._within(name, rows):
            if piece.stop - piece.start <= step:
                yield piece
                continue
            for start in range(piece.start, piece.stop, step):
                yield from self._within(name, (start, min(piece.stop, start + step)))

    def _within(self, name: str, rows: Rows | None) -> Iterator[Piece]:
        """The pieces of these rows, the first and the last cut to them."""
        start, stop = rows or (0, self.specs[name].rows)
        first = max(0, bisect.bisect_right(self._starts, start) - 1)
        for at in range(first, len(self._pieces)):
            piece = self._pieces[at]
            if piece.start >= stop:
                return
            left = max(start, piece.start)
            if start <= piece.start and piece.stop <= stop:
                yield piece
            elif left < min(stop, piece.stop):
                places = tuple((own, row + left - piece.start) for own, row in piece.places)
                yield replace(piece, start=left, stop=min(stop, piece.stop), places=places)

    def _places(self, name: str, piece: Piece) -> list[Place]:
        return [place for place in piece.places if self._names[name][place[0]] is not None]

    def _piece(self, name: str, piece: Piece) -> torch.Tensor:
        import torch

        places = self._places(name, piece)
        if piece.mean or len(places) < min(1, len(piece.places)):
            return self._mean(name)
        parts = (self._rows(name, place, piece.stop - piece.start) for place in places)
        if len(places) == 1:
            return next(parts)
        total = torch.zeros((piece.stop - piece.start, *self.specs[name].shape[1:]), dtype=self._precise(name))
        for part in parts:
            total += part
        return total / max(1, len(places))

    def _rows(self, name: str, place: Place, number: int) -> torch.Tensor:
        own, row = place
        tensor = self._names[name][own]
        assert tensor is not None
        return self._members[own].read(tensor, (row, row + number))

    def _mean(self, name: str) -> torch.Tensor:
        """Of all rows that hold tokens, without those that take the mean themselves."""
        import torch

        with self._lock:
            if name not in self._means:
                total, number = torch.zeros(self.specs[name].shape[1:], dtype=torch.float64), 0
                for piece in self._blocks(name, None):
                    if not piece.token or piece.mean or len(self._places(name, piece)) < min(1, len(piece.places)):
                        continue
                    total += self._piece(name, piece).to(self._precise(name)).sum(0, dtype=torch.float64)
                    number += piece.stop - piece.start
                self._means[name] = (total / max(1, number)).to(self._precise(name))
            return self._means[name]

    def _dtype(self, name: str) -> torch.dtype:
        """The tensor's own; float32 where an adapter makes it, which is not rounded before it is merged."""
        made = isinstance(self._source, AdapterCheckpoint) and name in self._source.changes
        return self._precise(name) if made else torch_dtype(self.specs[name].dtype)

    def _precise(self, name: str) -> torch.dtype:
        """What averages are computed in."""
        return torch_dtype("F64" if self.specs[name].dtype == "F64" else "F32")

    def side_file(self, name: str) -> Path:
        content = self._side_files.get(name)
        if content is None:
            if name in self._side_files:
                raise FileNotFoundError(name)
            return self._source.side_file(name)
        if not isinstance(content, bytes):
            return content()
        with self._lock:
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="dopkit-")
            path = Path(self._folder.name) / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
            return path

    def close(self) -> None:
        self._source.close()
        with self._lock:
            if self._folder is not None:
                self._folder.cleanup()
                self._folder = None


def gathered_specs(
    specs: Mapping[str, TensorSpec], names: Mapping[str, Names], pieces: Sequence[Piece]
) -> dict[str, TensorSpec]:
    """The headers of the tensors of ``names``, with as many rows as the pieces make."""
    if not pieces:
        return {}
    return {name: replace(specs[name], shape=(pieces[-1].stop, *specs[name].shape[1:])) for name in names}
