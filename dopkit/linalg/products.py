"""Products that need care: inner products added up in float64, and Gram matrices of which half is computed."""

from __future__ import annotations

import torch
from torch import Tensor

STRIPS = 8  # that a Gram matrix is made in: 9/16 of the whole product, in pieces that are still large
SMALL = 384  # rows below which the pieces cost more than they save
BLOCK = 1 << 20  # elements that are multiplied and added up at a time


def inner(one: Tensor, other: Tensor, dim: int | None = None) -> Tensor:
    """The inner product in float64: of whole tensors (a scalar), or along an axis, which stays with length 1."""
    if dim is not None:
        return (one * other).sum(dim, keepdim=True, dtype=torch.float64)
    total = one.new_zeros((), dtype=torch.float64)
    # In blocks: a sum in float64 copies into it all that is added up.
    mine, its = one.reshape(-1), other.reshape(-1)
    for start in range(0, mine.numel(), BLOCK):
        total += (mine[start : start + BLOCK] * its[start : start + BLOCK]).sum(dtype=torch.float64)
    return total


def gram(matrix: Tensor) -> Tensor:
    """M M^T (m, m) for M = ``matrix`` (m, n), in its dtype; symmetric to the last bit."""
    rows = matrix.shape[0]
    return mirrored(add_gram(matrix.new_zeros(rows, rows), matrix))


def add_gram(total: Tensor, matrix: Tensor) -> Tensor:
    """Add M M^T to ``total`` (m, m), on and below the diagonal; what lies above it is left undefined."""
    rows = matrix.shape[0]
    width = _width(rows)
    for start in range(0, rows, width):
        total[start:, start : start + width].addmm_(matrix[start:], matrix[start : start + width].mT)
    return total


def mirrored(square: Tensor) -> Tensor:
    """``square`` itself, with what lies below the diagonal copied above it."""
    rows = square.shape[0]
    width = _width(rows)
    for start in range(0, rows, width):
        end = start + width
        block = square[start:end, start:end]
        block.copy_(block.tril() + block.tril(-1).mT)
        square[start:end, end:] = square[end:, start:end].mT
    return square


def _width(rows: int) -> int:
    """Of a strip."""
    return max(1, rows if rows < SMALL else -(-rows // STRIPS))
