"""Several pieces of work in hand: their order, how many at a time, errors, and what stops them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from dopkit.engine import crew as crews
from dopkit.engine.crew import Crew, Hand, Stopped


class Count:
    """How many are in hand, how many bytes they take, and what was begun."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.now = self.most = self.bytes = self.most_bytes = 0
        self.begun: list[int] = []


class Number:
    """Gives its number twice."""

    def __init__(
        self, number: int, count: Count, work: Callable[[Hand[int]], None], nbytes: int = 1, alone: bool = False
    ) -> None:
        self.number, self.count, self.work, self.nbytes, self.alone = number, count, work, nbytes, alone

    def admitted(self) -> None:
        self.count.begun.append(self.number)

    def run(self, hand: Hand[int]) -> None:
        count = self.count
        with count.lock:
            count.now, count.bytes = count.now + 1, count.bytes + self.nbytes
            count.most, count.most_bytes = max(count.most, count.now), max(count.most_bytes, count.bytes)
        try:
            hand.give(8, self.number)
            self.work(hand)
            hand.give(8, self.number)
        finally:
            with count.lock:
                count.now, count.bytes = count.now - 1, count.bytes - self.nbytes


def given(crew: Crew[int, Number], pieces: Iterator[Number]) -> Iterator[int | str]:
    for piece, one in crew.run(pieces):
        yield f"end of {piece.number}" if one is None else one


def resting(hand: Hand[int]) -> None:
    time.sleep(0.002)


def slowly(hand: Hand[int]) -> None:
    for _ in range(10_000):
        time.sleep(0.002)


@pytest.mark.parametrize("hands", [1, 2, 3])
def test_what_is_given_comes_in_the_order_of_the_work(hands: int) -> None:
    """Whatever is slow: here every third piece."""
    count = Count()

    def work(number: int) -> Callable[[Hand[int]], None]:
        return lambda hand: time.sleep(0.01 if number % 3 == 0 else 0)

    crew = Crew[int, Number](hands, 100, None)
    found = list(given(crew, (Number(number, count, work(number)) for number in range(30))))
    crew.join()
    assert found == [one for number in range(30) for one in (number, number, f"end of {number}")]
    assert count.begun == list(range(30))
    assert count.most <= hands and (hands == 1 or count.most > 1)


def test_bytes_bound_what_is_in_hand_but_one_is_always_taken() -> None:
    count = Count()
    sizes = [40, 40, 40, 200, 40, 40]
    crew = Crew[int, Number](3, 100, None)
    pieces = (Number(number, count, resting, size) for number, size in enumerate(sizes))
    assert len(list(given(crew, pieces))) == 3 * len(sizes)
    crew.join()
    assert count.most_bytes == 200
    assert count.most == 2


def test_a_piece_that_is_done_alone_has_all_threads_and_no_company() -> None:
    """Those beside others have one each, whatever the number of hands; what is started later has what it had before."""
    count, threads = Count(), {}
    company = []

    def look(number: int) -> Callable[[Hand[int]], None]:
        def work(hand: Hand[int]) -> None:
            time.sleep(0.005)
            threads[number] = torch.get_num_threads()
            if number == 3:
                company.append(count.now)

        return work

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    crew = Crew[int, Number](2, 100, 3)
    list(given(crew, (Number(number, count, look(number), alone=number == 3) for number in range(6))))
    crew.join()
    assert [threads[number] for number in range(6)] == [1, 1, 1, 3, 1, 1]
    assert company == [1]
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert [torch.get_num_threads(), *later] == [3, 3]
    torch.set_num_threads(before)


def test_the_first_error_in_order_is_told_and_the_rest_is_broken_off() -> None:
    """The second piece fails at once, the first later: that is the one to tell. A third would go on for long."""
    count = Count()

    def fail(after: float, text: str) -> Callable[[Hand[int]], None]:
        def work(hand: Hand[int]) -> None:
            time.sleep(after)
            raise ValueError(text)

        return work

    pieces = [Number(0, count, fail(0.05, "first")), Number(1, count, fail(0, "second")), Number(2, count, slowly)]
    crew = Crew[int, Number](3, 100, None)
    started = time.monotonic()
    with pytest.raises(ValueError, match="first"):
        list(given(crew, iter(pieces)))
    crew.stop()
    crew.join()
    assert time.monotonic() - started < 10, "what nobody wants any more was not broken off"
    assert count.now == 0


def test_who_waits_for_a_turn_is_stopped_as_well() -> None:
    """The second piece has given more than may wait, while the first is slow and its receiver goes away."""
    count, ends = Count(), []

    def give_much(hand: Hand[int]) -> None:
        try:
            for _ in range(5):
                hand.give(10_000_000, 1)
        except Stopped:
            ends.append("stopped")
            raise

    crew = Crew[int, Number](2, 100, None)
    results = given(crew, iter([Number(0, count, slowly), Number(1, count, give_much)]))
    assert next(results) == 0
    time.sleep(0.02)
    crew.stop()
    crew.join()
    assert ends == ["stopped"]
    assert count.now == 0


def test_what_holds_locks_is_not_broken_off() -> None:
    """A call that is shielded comes to its end; the piece stops behind it."""
    count, done = Count(), []

    def work(hand: Hand[int]) -> None:
        hand.shielded(lambda: (time.sleep(0.1), done.append("whole")))
        done.append("more")

    crew = Crew[int, Number](1, 100, None)
    results = given(crew, iter([Number(0, count, work)]))
    assert next(results) == 0
    time.sleep(0.02)
    crew.stop()
    crew.join()
    assert done == ["whole"]


def test_who_comes_first_waits_for_whoever_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A piece that gives more than it takes, as one that keeps every step, does not fill the memory: a disk is slow."""
    monkeypatch.setattr(crews, "_HELD_BYTES", 20)
    given_so_far = 0

    def work(hand: Hand[int]) -> None:
        nonlocal given_so_far
        for number in range(10):
            hand.give(10, number)
            given_so_far = number + 1

    crew = Crew[int, Number](2, 100, None)
    results = given(crew, iter([Number(7, Count(), work)]))
    assert next(results) == 7
    time.sleep(0.2)
    assert given_so_far <= 2
    assert list(results) == [*range(10), 7, "end of 7"]
    crew.join()
