"""Which bytes of which files to fetch together, from the reads that are to come. Pure arithmetic.

A window is a stretch of the coming reads whose bytes are held in memory together. Inside a window it does not matter in
which order the bytes are fetched, so neighbours in a file become one span, which is one request.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

GAP = 64_000  # bytes between neighbours that may be fetched for nothing rather than begin another request
WASTE = 0.02  # of a window's bytes, at most, for all its gaps


@dataclass(frozen=True, order=True)
class Span:
    """Bytes ``start`` to ``stop`` (exclusive) of a file."""

    file: str
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def holds(self, other: Span) -> bool:
        return self.file == other.file and self.start <= other.start and other.stop <= self.stop


@dataclass(frozen=True)
class Window:
    """So many reads after one another, and the spans that hold their bytes, in order of first use."""

    reads: int
    spans: tuple[Span, ...]

    @property
    def nbytes(self) -> int:
        return sum(map(len, self.spans))


def windows(reads: Iterable[Span], limit: int) -> Iterator[Window]:
    """Cut the reads, none of them empty or longer than ``limit``, into windows of at most ``limit`` bytes each."""
    waiting: list[Span] = []
    known: set[Span] = set()  # the base may be one of the models, too
    room = limit
    for read in reads:
        assert 0 < len(read) <= limit, read
        if read not in known and len(read) > room:
            yield Window(len(waiting), _joined(waiting, limit))
            waiting, known, room = [], set(), limit
        if read not in known:
            known.add(read)
            room -= len(read)
        waiting.append(read)
    if waiting:
        yield Window(len(waiting), _joined(waiting, limit))


def _joined(reads: Sequence[Span], limit: int) -> tuple[Span, ...]:
    """The spans that hold these reads. Small gaps are bridged, the smallest first, as far as that may cost anything."""
    spans = _merge(sorted(set(reads)), 0)
    needed = sum(map(len, spans))
    spare = min(int(needed * WASTE), limit - needed)
    gaps = [gap for gap in _gaps(spans) if gap <= GAP]
    reach = max((gap for gap in gaps if sum(other for other in gaps if other <= gap) <= spare), default=0)
    first_use = {read: at for at, read in reversed(list(enumerate(reads)))}
    joined = _merge(spans, reach)
    return tuple(sorted(joined, key=lambda span: min(at for read, at in first_use.items() if span.holds(read))))


def _merge(spans: Sequence[Span], reach: int) -> list[Span]:
    """Sorted spans, joined where they overlap or lie at most ``reach`` bytes apart."""
    joined: list[Span] = []
    for span in spans:
        if joined and joined[-1].file == span.file and span.start - joined[-1].stop <= reach:
            last = joined.pop()
            span = Span(span.file, last.start, max(last.stop, span.stop))
        joined.append(span)
    return joined


def _gaps(spans: Sequence[Span]) -> list[int]:
    pairs = zip(spans, spans[1:], strict=False)
    return [after.start - before.stop for before, after in pairs if after.file == before.file]
