"""Which entries of a task vector stay: the largest ones, all but the largest and smallest, or some by chance.

A fold has a ``trim``, after ``Untrimmed``. The functions change ``entries`` in place and return it; any floating-point
dtype, any shape. None knows parameters' names. Thresholds are exact, and entries that are as large as the last one kept
stay with it: models in bfloat16 have many equal ones, and which of them stay must not be an accident.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dopkit.linalg.magnitude import CACHED, kth_largest
from dopkit.linalg.spectra import working_dtype
from dopkit.methods.fold import Context


class Untrimmed:
    """Task vectors as they are."""

    def trims(self, ctx: Context) -> bool:
        """Whether anything is left out of the task vector of the model coming in."""
        return False

    def trim(self, entries: Tensor, ctx: Context) -> Tensor:
        """What is left of a task vector: in its memory, it belongs to the fold."""
        return entries


def keep_largest(entries: Tensor, density: float) -> Tensor:
    """Of n entries the floor(density n) of largest magnitude, one at least unless ``density`` is 0 (TIES)."""
    if not entries.numel() or density >= 1:
        return entries
    if density == 0:
        return entries.mul_(0)  # so that NaN stays
    bound = bound_of_largest(entries, density)
    return entries if bound is None else torch.hardshrink(entries, bound, out=entries)


def bound_of_largest(entries: Tensor, density: float) -> float | None:
    """What the magnitudes of those are above, density being between 0 and 1; None when all of them are to stay.

    The next number below the least of them: shrinking drops what is not above its bound, without a branch for each
    element, which a mask of scattered elements costs.
    """
    return bound_above(kth_largest(entries, count_of_largest(entries.numel(), density)))


def count_of_largest(numel: int, density: float) -> int:
    """How many of so many entries stay."""
    return max(1, int(density * numel))


def bound_above(threshold: Tensor) -> float | None:
    """The bound that goes with the least magnitude that stays, a scalar of the entries' dtype."""
    below = float(torch.nextafter(threshold, threshold.new_tensor(-1.0)))
    return below if below >= 0 else None


def blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Parts of tensors of one shape, side by side, as small as a core's cache; all at once on other devices.

    For arithmetic in several passes on tensors that memory is slow to deliver.
    """
    small = tensors[0].numel() <= CACHED
    if small or tensors[0].device.type != "cpu" or not all(tensor.is_contiguous() for tensor in tensors):
        yield tensors
        return
    flat = [tensor.view(-1) for tensor in tensors]
    for start in range(0, flat[0].numel(), CACHED):
        yield tuple(tensor[start : start + CACHED] for tensor in flat)


def keep_middle(entries: Tensor, density: float, gamma: float) -> Tensor:
    """Without the floor(gamma n) largest ones, the floor(density n) largest of the rest (Model Breadcrumbs).

    Where that is more than there are, fewer of the largest ones go.
    """
    number = entries.numel()
    if not number or density >= 1:
        return entries
    if density == 0:
        return entries.mul_(0)
    kept = max(1, int(density * number))
    largest = min(int(gamma * number), number - kept)
    least, most = kth_largest(entries, largest + kept), kth_largest(entries, largest + 1)
    magnitudes = entries.abs()
    return entries.masked_fill_((magnitudes < least).logical_or_(magnitudes > most), 0)


def drop_at_random(entries: Tensor, draws: Tensor, density: float, rescale: bool) -> Tensor:
    """Each with the chance ``density``, divided by it, which keeps its expectation (DARE).

    ``draws`` are uniform on [0, 1), of the shape of ``entries``.
    """
    entries.mul_((draws < density).to(entries.device, entries.dtype))
    return entries.div_(density) if rescale and density else entries


def drop_by_rank(entries: Tensor, draws: Tensor, density: float, epsilon: float, rescale: bool) -> Tensor:
    """Each with a chance that grows with its rank among the magnitudes of its row, divided by it (DELLA's MAGPRUNE).

    The smallest of a row stays with the chance density - epsilon, the largest with density + epsilon, and those between
    in equal steps. A vector is one row; of more than two axes, all but the first make a row.
    """
    if not entries.numel():
        return entries
    if density == 0:
        return entries.mul_(0)
    rows = entries.view(entries.shape[0] if entries.dim() > 1 else 1, -1)
    length = rows.shape[1]
    order = rows.abs().argsort(dim=1, stable=True)
    steps = torch.linspace(-epsilon, epsilon, length, device=entries.device, dtype=entries.dtype)
    steps = steps if length > 1 else torch.zeros_like(steps)
    chances = torch.empty_like(rows).scatter_(1, order, (steps + density).expand_as(rows))
    rows.mul_((draws.view_as(rows).to(entries.device) < chances).to(entries.dtype))
    if rescale:
        rows.div_(chances)
    return entries


def restore_sum(entries: Tensor, magnitudes: float) -> Tensor:
    """All multiplied so that their magnitudes add up to ``magnitudes``, where there are any."""
    left = sum_of_magnitudes(entries)
    return entries.mul_(magnitudes / left) if left else entries


def sum_of_magnitudes(entries: Tensor) -> float:
    return float(entries.abs().sum(dtype=working_dtype(entries.device)))
