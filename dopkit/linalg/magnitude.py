"""Magnitudes in order: the k-th largest of a tensor, exactly, in memory that does not grow with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK = 1 << 20  # elements looked at together
CACHED = 1 << 17  # as many as stay in a core's cache
SAMPLE = 1 << 15  # elements that tell where to look
DIGIT = 16  # bits
INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}


class _NotFiniteError(ValueError):
    """Among the elements is one that has no place in an order."""


def kth_largest(tensor: Tensor, count: int) -> Tensor:
    """The ``count``-th largest absolute value of a float32 or float64 tensor (any shape), as a scalar tensor.

    Without their signs, floating-point numbers are ordered as the integers that their bits spell; so a count of their
    leading 16 bits finds the leading 16 bits of the answer, and so on. On a CPU a sample mostly brackets the answer, so
    that one look at all elements settles it, several times as fast. The same on every device, whatever the layout.
    Raises ValueError when ``count`` is not between 1 and the number of elements.
    """
    if not 1 <= count <= tensor.numel():
        raise ValueError(f"there is no magnitude number {count} among {tensor.numel()}")
    flat = tensor.detach().reshape(-1)
    near = _near_quantile(flat.numpy(), count) if flat.device.type == "cpu" else None
    if near is not None:
        return torch.tensor(near, dtype=tensor.dtype)
    return _by_digits(flat, count)


def _by_digits(tensor: Tensor, count: int) -> Tensor:
    flat = tensor.reshape(-1)
    width = 8 * tensor.element_size()
    found = 0  # the leading bits of the answer
    for shift in range(width - DIGIT, -1, -DIGIT):
        histogram = torch.zeros(1 << DIGIT, dtype=torch.int64)
        for start in range(0, flat.numel(), BLOCK):
            bits = flat[start : start + BLOCK].abs().view(INTEGERS[tensor.dtype])
            digits = bits[(bits >> shift >> DIGIT) == found] >> shift if shift + DIGIT < width else bits >> shift
            histogram += torch.bincount(digits & ((1 << DIGIT) - 1), minlength=1 << DIGIT).cpu()
        at_least = histogram.flip(0).cumsum(0)  # how many have this digit or a larger one, largest first
        place = int(torch.searchsorted(at_least, count))
        if place:
            count -= int(at_least[place - 1])
        found = (found << DIGIT) | ((1 << DIGIT) - 1 - place)
    return torch.tensor(found, dtype=INTEGERS[tensor.dtype], device=tensor.device).view(tensor.dtype)


def _near_quantile(flat: NDArray[Any], count: int) -> float | None:
    """The answer, if it lies where a sample of the elements says; else None: for all that differs, and for NaN."""
    try:
        return near_quantile(flat[:: sample_step(flat.size)], flat.size, count, _blocks(flat))
    except _NotFiniteError:
        return None


def sample_step(size: int) -> int:
    """Of so many elements, every how manieth one is enough to tell where to look."""
    return max(1, size // SAMPLE)


def near_quantile(some: NDArray[Any], size: int, count: int, blocks: Iterable[NDArray[Any]]) -> float | None:
    """The ``count``-th largest magnitude of ``size`` finite elements, if it lies where ``some`` of them say; else None.
    The ``blocks`` are the magnitudes of all, once each.

    Between the sample's elements some way above and below, few others lie: those are looked at one by one.
    """
    sample = np.sort(np.abs(some))[::-1]
    share = count / size
    at, around = share * sample.size, 2 + 4 * (sample.size * share * (1 - share)) ** 0.5
    high, low = (sample[min(max(int(place), 0), sample.size - 1)] for place in (at - around, at + around))
    above = from_high = from_low = 0  # how many are larger than the upper end, and at least as large as either
    between: list[NDArray[Any]] = []
    room = size // 8 + SAMPLE
    for magnitudes in blocks:
        larger = magnitudes > high
        above += (beyond := int(np.count_nonzero(larger)))
        inside = magnitudes[np.flatnonzero((magnitudes >= low) ^ larger)]  # ends included
        from_low += beyond + inside.size
        from_high += beyond + int(np.count_nonzero(inside == high))
        inside = inside[(inside > low) & (inside < high)]
        room -= inside.size
        if room < 0:
            return None
        between.append(inside)
    if not above < count <= from_low:
        return None
    if count <= from_high:
        return float(high)
    rest = np.concatenate(between) if between else np.empty(0)
    place = rest.size - (count - from_high)  # from the smallest
    return float(low) if place < 0 else float(np.partition(rest, place)[place])


def _blocks(flat: NDArray[Any]) -> Iterator[NDArray[Any]]:
    room = np.empty(min(flat.size, CACHED), flat.dtype)
    for start in range(0, flat.size, CACHED):
        part = flat[start : start + CACHED]
        magnitudes = np.abs(part, out=room[: part.size])
        if not np.isfinite(magnitudes.max()):
            raise _NotFiniteError
        yield magnitudes
