"""A model on the Hub that is read over the network, part by part, and never stored.

What is going to be read is known beforehand: neighbouring bytes are fetched with one request, the next ones while those
before are merged. Files that the cache has are read there. Does not know how bytes are requested.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from dopkit.checkpoints.checkpoint import Checkpoint
from dopkit.checkpoints.reading import SafetensorsFiles, bytes_of, placed
from dopkit.checkpoints.spans import Span, windows
from dopkit.hub import RemoteFile

if TYPE_CHECKING:
    import torch

_Fetch = Callable[[Span, memoryview], None]

_AT_ONCE = 4  # requests under way for one model
_PIECE = 1 << 25  # a single read longer than two of these is fetched in several requests side by side


class StreamedCheckpoint(Checkpoint):
    """``source`` with the files of ``remotes`` read from there; ``stored`` has the others."""

    streams = True

    def __init__(self, source: Checkpoint, remotes: Mapping[str, RemoteFile], stored: SafetensorsFiles) -> None:
        super().__init__(source.ref, source.specs, source.config, source.side_files, source.identity)
        self.notes = source.notes
        self._source = source
        self._remotes = remotes
        self._stored = stored
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="dopkit-stream")
        self._ahead = _Ahead((), 0, self._pool, self._fetch)

    def expect(self, reads: Sequence[tuple[str, tuple[int, int] | None]], budget: int) -> None:
        spans = (self._span(name, rows) for name, rows in reads if self.specs[name].file in self._remotes)
        self._ahead.close()
        # one part is used while the next is fetched
        self._ahead = _Ahead([span for span in spans if len(span)], budget // 2, self._pool, self._fetch)

    def read(self, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
        spec = self.specs[name]
        if spec.file not in self._remotes:
            return self._stored.read(spec, rows)
        tensor, start = placed(spec, rows)
        if tensor.numel():
            view = bytes_of(tensor)
            wanted = Span(spec.file, start, start + len(view))
            if not self._ahead.serve(wanted, view):
                self._fetch_at_once(wanted, view)
        return tensor

    def side_file(self, name: str) -> Path:
        return self._source.side_file(name)

    def digests(self, name: str) -> frozenset[str]:
        return self._source.digests(name)

    def close(self) -> None:
        for remote in self._remotes.values():
            remote.stop()
        self._ahead.close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._stored.close()

    def _span(self, name: str, rows: tuple[int, int] | None) -> Span:
        spec = self.specs[name]
        start, stop = rows or (0, spec.rows)
        per_row = spec.nbytes // max(1, spec.rows)
        return Span(spec.file, spec.offset + start * per_row, spec.offset + stop * per_row)

    def _fetch(self, span: Span, view: memoryview) -> None:
        self._remotes[span.file].read_into(view, span.start)

    def _fetch_at_once(self, wanted: Span, view: memoryview) -> None:
        """A read that nobody announced, or that is too large to be held twice: straight into its tensor."""
        number = min(_AT_ONCE, max(1, len(wanted) // _PIECE))
        cuts = [wanted.start + len(wanted) * part // number for part in range(number + 1)]
        pieces = [Span(wanted.file, start, stop) for start, stop in zip(cuts, cuts[1:], strict=False)]
        views = [view[piece.start - wanted.start : piece.stop - wanted.start] for piece in pieces]
        others = [self._pool.submit(self._fetch, *pair) for pair in zip(pieces[1:], views[1:], strict=True)]
        try:
            self._fetch(pieces[0], views[0])
        finally:
            failed = [error for other in others if (error := other.exception()) is not None]
        if failed:
            raise failed[0]


class _Ahead:
    """Announced reads, at most two windows of them in memory: the one in use and the one after it."""

    def __init__(self, reads: Sequence[Span], limit: int, pool: ThreadPoolExecutor, fetch: _Fetch) -> None:
        self._reads = [read for read in reads if len(read) <= limit]
        self._windows = list(windows(self._reads, limit))
        self._ends = list(accumulate(window.reads for window in self._windows))
        self._pool = pool
        self._fetch = fetch
        self._position = 0  # of the read that comes next
        self._window = 0  # and the window it lies in
        self._held: dict[int, list[tuple[Span, Future[memoryview]]]] = {}
        self._lock = threading.Lock()

    def serve(self, wanted: Span, view: memoryview) -> bool:
        """Fill ``view`` if this is the read that was announced next. Raises HubError."""
        with self._lock:
            if self._position == len(self._reads) or self._reads[self._position] != wanted:
                return False
            self._load(self._window)
            self._load(self._window + 1)
            held = self._held[self._window]
            self._position += 1
            if self._position == self._ends[self._window]:
                del self._held[self._window]
                self._window += 1
        span, future = next(pair for pair in held if pair[0].holds(wanted))
        if future.done() and future.exception() is not None:
            return False  # it failed before anybody waited for it: things may be better now
        view[:] = future.result()[wanted.start - span.start : wanted.stop - span.start]
        del held, future  # at a window's end its memory, before the next is asked for
        with self._lock:
            self._load(self._window + 1)
        return True

    def _load(self, number: int) -> None:
        if number < len(self._windows) and number not in self._held:
            spans = self._windows[number].spans
            self._held[number] = [(span, self._pool.submit(self._load_span, span)) for span in spans]

    def _load_span(self, span: Span) -> memoryview:
        # a mapping of its own goes back to the system at once, unlike what the allocator keeps
        view = memoryview(mmap.mmap(-1, len(span)))
        self._fetch(span, view)
        return view

    def close(self) -> None:
        """Ask for nothing more; what is under way comes to its end."""
        with self._lock:
            self._reads, self._windows, self._position = [], [], 0
            for held in self._held.values():
                for _, future in held:
                    future.cancel()
            self._held.clear()
