"""Inner products, added up in float64 whatever the tensors are in."""

from __future__ import annotations

import torch
from torch import Tensor


def inner(one: Tensor, other: Tensor, dim: int | None = None) -> Tensor:
    """The inner product in float64: of whole tensors (a scalar), or along an axis, which stays with length 1."""
    product = one * other
    if dim is None:
        return product.sum(dtype=torch.float64)
    return product.sum(dim, keepdim=True, dtype=torch.float64)
