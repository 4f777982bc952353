"""How well a language model foretells a text. Knows token ids, not where the text comes from.

The text is tokenised as one, and read in windows of ``length`` tokens of which each begins half a window after the one
before. In a window only those tokens count that none before it has scored, so every token but the first is scored once,
and from the second window on with at least half a window before it. Perplexity is exp of the mean negative
log-likelihood of the scored tokens (natural logarithm).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

SEPARATOR = "\n\n"  # between the rows of the data
LONGEST = 1024  # tokens in a window, where neither the task nor the model asks for fewer

Window = tuple[int, int, int]  # first token, one past the last, the first that counts


def windows(tokens: int, length: int) -> Iterator[Window]:
    """The windows over so many tokens: ``(0, 4, 1), (2, 6, 4), (4, 7, 6)`` for 7 tokens and length 4."""
    start, scored = 0, 1
    while scored < tokens:
        stop = min(start + length, tokens)
        yield start, stop, scored
        start, scored = start + max(1, length // 2), stop


def window_length(model_limit: int | None, asked: int | None) -> int:
    """How long a window is: as long as asked for, but no longer than the model reads."""
    length = asked or LONGEST
    return max(2, min(length, model_limit or length))


@torch.inference_mode()
def negative_log_likelihood(model: Any, ids: Tensor, batch: Sequence[Window]) -> float:
    """Summed over the tokens that count in the windows, which must be of one length. ``ids`` [tokens] on any device."""
    inputs = torch.stack([ids[start:stop] for start, stop, _ in batch]).to(model.device)  # [windows, length]
    logits = model(input_ids=inputs).logits[:, :-1].float()  # what each position says of the next
    losses = cross_entropy(logits.transpose(1, 2), inputs[:, 1:], reduction="none")  # [windows, length - 1]
    counted = [losses[row, first - start - 1 :].sum().item() for row, (start, _, first) in enumerate(batch)]
    return math.fsum(counted)


def batches(found: Sequence[Window], size: int) -> Iterator[list[Window]]:
    """Windows of one length, at most ``size`` at a time."""
    batch: list[Window] = []
    for window in found:
        if batch and (len(batch) == size or window[1] - window[0] != batch[0][1] - batch[0][0]):
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch
