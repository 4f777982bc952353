"""Reading ahead and writing behind: order, bounds, and what happens to errors."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from dopkit.engine.pipes import ReadAhead, Request, WriteBehind


def test_reads_come_in_order_and_within_the_budget() -> None:
    lock, inside, most = threading.Lock(), [0], [0]

    def request(number: int) -> Request:
        def read() -> torch.Tensor:
            with lock:
                inside[0] += 10
                most[0] = max(most[0], inside[0])
            return torch.tensor(number)

        return Request(10, read)

    ahead = ReadAhead((request(number) for number in range(50)), budget=30)
    for number in range(50):
        assert next(ahead).item() == number
        time.sleep(0.001)
        with lock:
            inside[0] -= 10
    ahead.close()
    assert 20 <= most[0] <= 40  # the one in hand and three ahead of it


def test_a_request_larger_than_the_budget_is_read_alone() -> None:
    ahead = ReadAhead((Request(100, lambda: torch.ones(1)) for _ in range(3)), budget=10)
    assert [next(ahead).item() for _ in range(3)] == [1, 1, 1]
    ahead.close()


def test_a_failed_read_is_raised_where_it_is_asked_for() -> None:
    def fail() -> torch.Tensor:
        raise OSError("gone")

    ahead = ReadAhead(iter([Request(1, lambda: torch.ones(1)), Request(1, fail)]), budget=10)
    assert next(ahead).item() == 1
    with pytest.raises(OSError, match="gone"):
        next(ahead)
    ahead.close()


def test_writes_run_in_order_and_hold_back_the_producer() -> None:
    done: list[int] = []
    gate = threading.Event()
    behind = WriteBehind(budget=2)
    behind.put(1, gate.wait)
    behind.put(1, lambda: done.append(1))
    third = threading.Thread(target=behind.put, args=(1, lambda: done.append(2)))
    third.start()
    third.join(0.05)
    assert third.is_alive(), "the budget is used up, yet more was taken"
    gate.set()
    third.join()
    behind.close()
    assert done == [1, 2]


def test_a_failed_write_stops_the_rest_and_comes_out() -> None:
    done: list[int] = []

    def fail() -> None:
        raise OSError("full")

    behind = WriteBehind(budget=100)
    behind.put(1, fail)
    behind.put(1, lambda: done.append(1)) if not behind._failed else None
    with pytest.raises(OSError, match="full"):
        behind.close()
    assert done == []


def test_without_a_budget_nothing_is_read_ahead() -> None:
    made: list[int] = []

    def request(number: int) -> Request:
        def read() -> torch.Tensor:
            made.append(number)
            return torch.tensor(number)

        return Request(10, read)

    ahead = ReadAhead((request(number) for number in range(5)), budget=0)
    for number in range(5):
        assert next(ahead).item() == number
        time.sleep(0.005)
        assert made == list(range(number + 1))
    ahead.close()


def test_without_a_budget_nothing_waits_to_be_written() -> None:
    written: list[int] = []

    def write(number: int) -> None:
        time.sleep(0.005)
        written.append(number)

    behind = WriteBehind(budget=0)
    for number in range(5):
        behind.put(10, lambda number=number: write(number))  # type: ignore[misc]
        assert written == list(range(number + 1))
    behind.close()
