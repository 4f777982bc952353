"""What a run shows: a live display on a terminal, lines when piped."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from dopkit.cli import progress


def drive(display: progress._Counting) -> None:
    display.stage("merging")
    display.begin(2, 3_000_000, 3.0)
    for name, nbytes in (("layers.0.weight", 1_000_000), ("layers.1.weight", 2_000_000)):
        display.tensor(name)
        display.advance(nbytes, nbytes / 1e6)
        display.tensor_done(name)
    display.note("a note")


def test_the_display_names_counts_bytes_memory_and_the_tensor_in_hand() -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    display = progress._Display(console)
    drive(display)
    console.print(display._render())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "merging" in text
    assert "2/2 tensors, 3 MB of 3 MB, peak memory " in text
    assert "layers.1.weight" in text
    assert "a note" in text


def test_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_LINE_EVERY", 0.0)
    console = Console(file=io.StringIO(), width=200)
    drive(progress._Lines(console, verbose=False))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert [line.partition(", peak")[0] for line in lines] == [
        "merging", "1/2 tensors, 1 MB of 3 MB", "2/2 tensors, 3 MB of 3 MB", "a note"
    ]  # fmt: skip


def score(display: progress._Counting) -> None:
    display.stage("scoring")
    display.begin_scoring("step 2: mnist", 400)
    display.scored(64)
    display.scored(64)


def test_the_display_counts_samples() -> None:
    """Also after a merge, whose counts are over; and not in the next one."""
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    display = progress._Display(console)
    drive(display)
    score(display)
    console.print(display._render())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "128/400 samples" in text and "step 2: mnist" in text
    assert "tensors" not in text
    assert display.bars.tasks[0].percentage == 32
    display.begin(2, 3_000_000, 3.0)
    assert "samples" not in display.counts()


def test_a_line_for_every_scored_task() -> None:
    console = Console(file=io.StringIO(), width=200)
    score(progress._Lines(console, verbose=False))
    assert console.file.getvalue().splitlines() == ["scoring", "step 2: mnist"]  # type: ignore[attr-defined]
