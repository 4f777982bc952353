"""Magnitudes in order: the k-th largest of a tensor, exactly, in memory that does not grow with it."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 1 << 20  # elements looked at together
DIGIT = 16  # bits
INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}


def kth_largest(tensor: Tensor, count: int) -> Tensor:
    """The ``count``-th largest absolute value of a float32 or float64 tensor (any shape), as a scalar tensor.

    Without their signs, floating-point numbers are ordered as the integers that their bits spell; so a count of their
    leading 16 bits finds the leading 16 bits of the answer, and so on. The same on every device, whatever the layout.
    Raises ValueError when ``count`` is not between 1 and the number of elements.
    """
    if not 1 <= count <= tensor.numel():
        raise ValueError(f"there is no magnitude number {count} among {tensor.numel()}")
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
