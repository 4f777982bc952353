"""A long run as it is shown: a live display on a terminal, plain lines when piped."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

from dopkit.measure import peak_resident_bytes
from dopkit.progress import Progress
from dopkit.units import show_size

_LINE_EVERY = 10.0  # seconds between plain lines


@contextmanager
def watch(quiet: bool, verbose: bool) -> Iterator[Progress]:
    """The display that fits where it is shown."""
    console = Console(stderr=True, highlight=False, markup=False)  # names may hold brackets
    if quiet:
        yield Progress()
    elif console.is_terminal and not verbose:
        display = _Display(console)
        with display.live:
            yield display
    else:
        yield _Lines(console, verbose)


class _Counting(Progress):
    """Counts what is done."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.tensors = self.tensors_done = self.nbytes = self.nbytes_done = 0
        self.effort = self.effort_done = 0.0
        self.samples = self.samples_done = 0
        self.current = ""
        self.in_hand: dict[str, None] = {}  # tensors, in the order in which they were begun

    def note(self, text: str) -> None:
        self.console.print(text)

    def begin(self, tensors: int, nbytes: int, effort: float) -> None:
        self.tensors, self.nbytes, self.effort = tensors, nbytes, effort
        self.tensors_done = self.nbytes_done = self.samples = 0
        self.effort_done = 0.0
        self.in_hand = {}

    def tensor(self, name: str) -> None:
        self.current = name
        self.in_hand[name] = None

    def advance(self, nbytes: int, effort: float) -> None:
        self.nbytes_done += nbytes
        self.effort_done += effort

    def tensor_done(self, name: str) -> None:
        self.tensors_done += 1
        self.in_hand.pop(name, None)  # in the thread that writes

    def begin_scoring(self, what: str, samples: int) -> None:
        self.current = what
        self.samples, self.samples_done = samples, 0

    def scored(self, samples: int) -> None:
        self.samples_done += samples

    def counts(self) -> str:
        if self.samples:
            return f"{self.samples_done}/{self.samples} samples"
        sizes = f"{show_size(self.nbytes_done)} of {show_size(self.nbytes)}"
        return f"{self.tensors_done}/{self.tensors} tensors, {sizes}, peak memory {show_size(peak_resident_bytes())}"


class _Display(_Counting):
    """Two lines on a terminal: a bar with the counts, and the tensors in hand."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.bars = Bars(
            TextColumn("{task.description}"), BarColumn(bar_width=30), TextColumn("{task.fields[counts]}"),
            TimeRemainingColumn(), console=console,
        )  # fmt: skip
        self.task = self.bars.add_task("", total=None, counts="")
        self.live = Live(console=console, get_renderable=self._render, transient=True, refresh_per_second=8)

    def _render(self) -> Group:
        if self.nbytes or self.samples:
            done = self.samples_done if self.samples else self.effort_done
            self.bars.update(self.task, completed=done, counts=self.counts())
        shown = ", ".join(list(self.in_hand)) or self.current
        return Group(self.bars, Text(shown, style="dim", no_wrap=True, overflow="ellipsis"))

    def stage(self, text: str) -> None:
        self.current, self.in_hand = "", {}
        self.bars.update(self.task, description=text)

    def begin(self, tensors: int, nbytes: int, effort: float) -> None:
        super().begin(tensors, nbytes, effort)
        self.bars.reset(self.task, total=max(effort, 1e-9), counts=self.counts())

    def begin_scoring(self, what: str, samples: int) -> None:
        super().begin_scoring(what, samples)
        self.bars.reset(self.task, total=samples, counts=self.counts())


class _Lines(_Counting):
    """A line per stage and per scored task, and one now and then while merging; with ``verbose`` one per tensor."""

    def __init__(self, console: Console, verbose: bool) -> None:
        super().__init__(console)
        self.verbose = verbose
        self.last = time.monotonic()

    def stage(self, text: str) -> None:
        self.console.print(text)

    def begin_scoring(self, what: str, samples: int) -> None:
        super().begin_scoring(what, samples)
        self.console.print(what, soft_wrap=True)

    def tensor_done(self, name: str) -> None:
        super().tensor_done(name)
        if self.verbose:
            self.console.print(f"{self.tensors_done}/{self.tensors} {name}", soft_wrap=True)
        elif time.monotonic() - self.last > _LINE_EVERY:
            self.last = time.monotonic()
            self.console.print(self.counts(), soft_wrap=True)
