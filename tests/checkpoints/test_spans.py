"""Unit tests for spans: which coming reads are fetched together."""

from __future__ import annotations

import random

import pytest

from dopkit.checkpoints.spans import GAP, Span, Window, windows


def cut(*reads: tuple[int, int], limit: int = 1000, file: str = "a") -> list[Window]:
    return list(windows([Span(file, *read) for read in reads], limit))


def test_neighbours_become_one_span() -> None:
    assert cut((0, 100), (100, 250), (250, 251)) == [Window(3, (Span("a", 0, 251),))]


def test_neighbours_in_another_order_become_one_span() -> None:
    assert cut((250, 300), (0, 100), (100, 250)) == [Window(3, (Span("a", 0, 300),))]


def test_what_is_apart_stays_apart_in_order_of_first_use() -> None:
    assert cut((500, 600), (0, 100)) == [Window(2, (Span("a", 500, 600), Span("a", 0, 100)))]


def test_files_are_never_joined() -> None:
    reads = [Span("a", 0, 10), Span("b", 10, 20), Span("a", 10, 20)]
    assert list(windows(reads, 100)) == [Window(3, (Span("a", 0, 20), Span("b", 10, 20)))]


def test_a_window_ends_where_the_limit_is() -> None:
    assert cut((0, 600), (600, 1000), (1000, 1001)) == [
        Window(2, (Span("a", 0, 1000),)),
        Window(1, (Span("a", 1000, 1001),)),
    ]


def test_what_is_read_twice_is_fetched_and_counted_once() -> None:
    assert cut((0, 600), (0, 600), (600, 1000)) == [Window(3, (Span("a", 0, 1000),))]


def test_small_gaps_are_bridged_while_they_cost_little() -> None:
    assert cut((0, 400), (404, 800)) == [Window(2, (Span("a", 0, 800),))]
    assert cut((0, 400), (420, 800)) == [Window(2, (Span("a", 0, 400), Span("a", 420, 800)))]
    # of two gaps the one that is affordable
    assert cut((0, 400), (404, 800), (820, 900)) == [Window(3, (Span("a", 0, 800), Span("a", 820, 900)))]
    # a bridged gap takes room, too
    assert cut((0, 500), (504, 1004)) == [Window(2, (Span("a", 0, 500), Span("a", 504, 1004)))]


def test_large_gaps_are_never_bridged() -> None:
    size = 100 * GAP
    found = cut((0, size), (size + GAP, 2 * size), (2 * size + GAP + 1, 3 * size), limit=4 * size)
    assert found == [Window(3, (Span("a", 0, 2 * size), Span("a", 2 * size + GAP + 1, 3 * size)))]


def test_nothing_to_read_gives_no_windows() -> None:
    assert cut() == []


@pytest.mark.parametrize("seed", range(20))
def test_any_reads_are_all_held_within_the_limit_and_the_waste(seed: int) -> None:
    dice = random.Random(seed)
    reads = []
    for file in ("a", "b"):
        position = 8
        for _ in range(60):
            size = dice.choice([1, 10, 100, 700])
            reads.append(Span(file, position, position + size))
            position += size + dice.choice([0, 0, 1, 5, 50, 5000])
    for start in range(0, 120, 6):  # the order of another model: shuffled nearby
        part = reads[start : start + 6]
        dice.shuffle(part)
        reads[start : start + 6] = part
    left = list(reads)
    for window in windows(reads, 1000):
        mine, left = left[: window.reads], left[window.reads :]
        assert all(sum(span.holds(read) for span in window.spans) == 1 for read in mine)
        assert window.nbytes <= 1000
        assert window.nbytes <= 1.02 * sum(map(len, mine))
        order = [next(at for at, read in enumerate(mine) if span.holds(read)) for span in window.spans]
        assert order == sorted(order)
    assert left == []
