"""Perplexity: every token is scored once, and the number is that of its definition."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import scored
import torch

from dopkit import loading
from dopkit.evaluation.perplexity import batches, negative_log_likelihood, window_length, windows


def test_literal_windows() -> None:
    assert list(windows(7, 4)) == [(0, 4, 1), (2, 6, 4), (4, 7, 6)]
    assert list(windows(4, 4)) == [(0, 4, 1)]
    assert list(windows(1, 4)) == []


@pytest.mark.parametrize("length", [2, 3, 4, 5, 16])
@pytest.mark.parametrize("tokens", [2, 3, 4, 5, 9, 16, 33])
def test_every_token_but_the_first_counts_once_with_context(tokens: int, length: int) -> None:
    counted = []
    for start, stop, first in windows(tokens, length):
        assert stop - start <= length and start < first
        assert start == 0 or first - start >= length // 2
        counted += range(first, stop)
    assert counted == list(range(1, tokens))


def test_batches_hold_windows_of_one_length() -> None:
    found = list(batches(list(windows(13, 4)), 2))
    assert [[(stop - start) for start, stop, _ in batch] for batch in found] == [[4, 4], [4, 4], [4], [3]]
    assert [window for batch in found for window in batch] == list(windows(13, 4))


def test_how_long_a_window_is() -> None:
    assert window_length(2048, None) == 1024
    assert window_length(512, None) == 512
    assert window_length(16, 64) == 16
    assert window_length(None, 64) == 64
    assert window_length(None, None) == 1024
    assert window_length(None, 4096) == 4096  # a model that tells no limit has none
    assert window_length(8192, 4096) == 4096


def test_the_number_is_that_of_the_definition(tmp_path: Path) -> None:
    """Token by token, by hand: its probability after the tokens before it in the window where it counts."""
    model = loading.load(scored.make_language_model(tmp_path / "lm"))
    ids = torch.randint(0, 48, (40,), generator=torch.Generator().manual_seed(0))
    by_hand = []
    for start, stop, first in windows(40, 16):
        for token in range(first, stop):
            with torch.inference_mode():
                before = model(input_ids=ids[None, start:token]).logits[0, -1].double()
            by_hand.append(-torch.log_softmax(before, dim=0)[ids[token]].item())
    assert len(by_hand) == 39
    for size in (1, 3):
        total = sum(negative_log_likelihood(model, ids, batch) for batch in batches(list(windows(40, 16)), size))
        assert total == pytest.approx(math.fsum(by_hand), rel=1e-5)


def test_a_short_text_is_transformers_own_loss(tmp_path: Path) -> None:
    model = loading.load(scored.make_language_model(tmp_path / "lm"))
    ids = torch.arange(12)
    with torch.inference_mode():
        loss = model(input_ids=ids[None], labels=ids[None]).loss.item()
    assert negative_log_likelihood(model, ids, list(windows(12, 16))) / 11 == pytest.approx(loss, rel=1e-6)


def test_a_model_that_knows_nothing_has_the_size_of_its_vocabulary(tmp_path: Path) -> None:
    model = loading.load(scored.make_language_model(tmp_path / "lm"))
    with torch.no_grad():
        model.lm_head.weight.zero_()
    total = negative_log_likelihood(model, torch.arange(10), list(windows(10, 16)))
    assert math.exp(total / 9) == pytest.approx(48)
