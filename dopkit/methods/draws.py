"""Random numbers that belong to an element of a tensor, whoever asks for them, when, and in what pieces.

The flattened tensor is cut into chunks of fixed length, and each has a generator of its own, seeded by the recipe's
seed, the tensor's name, the model's and the chunk's number. So neither blocks nor order, threads or resuming matter.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from dopkit.methods.fold import Context

CHUNK = 1 << 16  # elements


def uniform(ctx: Context, shape: tuple[int, ...]) -> Tensor:
    """Numbers from 0 to below 1, float32 on the CPU, for the part of the tensor that begins at ``ctx.offset``."""
    start, end = ctx.offset, ctx.offset + math.prod(shape)
    result = torch.empty(end - start, dtype=torch.float32)  # whatever is torch's default in this process
    for chunk in range(start // CHUNK, -(-end // CHUNK)):
        first = chunk * CHUNK
        low, high = max(start, first), min(end, first + CHUNK)
        result[low - start : high - start] = _chunk(ctx, chunk)[low - first : high - first]
    return result.view(shape)


def _chunk(ctx: Context, number: int) -> Tensor:
    """All of a chunk: a generator's numbers may depend on how many are asked for at once."""
    words = "\0".join((str(ctx.seed), ctx.tensor, ctx.model, str(number)))
    seed = int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big") >> 1
    return torch.rand(CHUNK, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
