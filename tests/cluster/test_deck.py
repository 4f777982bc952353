"""Jobs dealt out: each once, the dearest first, in shrinking batches; again when lost, and not for ever."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import dopkit
from dopkit.cluster.deck import MOST_SECONDS, Deck
from dopkit.errors import MergeError
from dopkit.planning import TensorJob
from dopkit.planning.sharing import merging_cost


@pytest.fixture(scope="module")
def jobs(llama: Path, make_recipe: Callable[..., dopkit.Recipe]) -> Sequence[TensorJob]:
    return dopkit.plan(make_recipe(llama, ["e0", "e1"], "dop")).jobs


def all_dealt(deck: Deck, workers: int) -> list[list[TensorJob]]:
    batches = []
    while batch := deck.deal(workers):
        batches.append(batch)
    return batches


@pytest.mark.parametrize("workers", [1, 2, 5, 100])
def test_every_job_once_in_batches_that_shrink(jobs: Sequence[TensorJob], workers: int) -> None:
    deck = Deck(jobs, lambda job: 1.0)
    batches = all_dealt(deck, workers)
    dealt = [job.name for batch in batches for job in batch]
    assert sorted(dealt) == sorted(job.name for job in jobs)
    sizes = [len(batch) for batch in batches]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] == 1
    assert sizes[0] == max(1, len(jobs) // (2 * workers))
    for batch in batches:
        assert batch == [job for job in jobs if job in batch], "within a batch the order is that of the jobs"
    assert not deck.over
    for job in jobs:
        deck.done(job)
    assert deck.over


def test_the_dearest_come_first(jobs: Sequence[TensorJob]) -> None:
    batches = all_dealt(Deck(jobs, merging_cost), 3)
    dearest = [max(map(merging_cost, batch)) for batch in batches]
    assert dearest == sorted(dearest, reverse=True)


def test_no_batch_is_longer_than_a_loss_may_be(jobs: Sequence[TensorJob]) -> None:
    for batch in all_dealt(Deck(jobs, lambda job: MOST_SECONDS / 3), 1):
        assert len(batch) <= 3
    assert all(len(batch) == 1 for batch in all_dealt(Deck(jobs, lambda job: 10 * MOST_SECONDS), 1))


def test_what_was_lost_comes_alone_and_three_times(jobs: Sequence[TensorJob]) -> None:
    deck = Deck(jobs, lambda job: 1.0)
    batch = deck.deal(1)
    assert len(batch) > 2
    deck.done(batch[0])
    deck.lost(batch[1:])
    assert set(deck.waiting) == set(jobs) - {batch[0]}
    for job in batch[1:]:
        assert deck.deal(1) == [job]
    deck.lost([batch[1]])
    assert deck.deal(1) == [batch[1]]
    with pytest.raises(MergeError, match=f"3 workers were lost while they merged {batch[1].name}"):
        deck.lost([batch[1]])


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_lost_all_is_done_at_the_end(jobs: Sequence[TensorJob], seed: int) -> None:
    """Losses at random, each of them at most twice for one job: every job is done, and none is dealt while in hand."""
    chance, deck = random.Random(seed), Deck(jobs, merging_cost)
    lost, hands, done = dict.fromkeys(jobs, 0), [], []
    while not deck.over:
        if batch := deck.deal(4):
            hands.append(batch)
            assert len({job.name for hand in hands for job in hand}) == sum(map(len, hands))
        batch = hands.pop(chance.randrange(len(hands)))
        cut = chance.randrange(len(batch) + 1) if all(lost[job] < 2 for job in batch) else len(batch)
        for job in batch[:cut]:
            deck.done(job)
            done.append(job)
        if batch[cut:]:
            lost |= {job: lost[job] + 1 for job in batch[cut:]}
            deck.lost(batch[cut:])
    assert sorted(job.name for job in done) == sorted(job.name for job in jobs)
