"""Tensors on their way to a device, and work there beside other work. Knows torch's devices, nothing of merges.

No machine that this was written on has a GPU: what is tested is which calls are made, not how fast they are.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def moved(raw: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """``raw`` on ``device`` in ``dtype``: the tensor itself where it is that already.

    To a GPU it goes in its own dtype, which is seldom the larger one, out of pinned memory and without waiting: what
    is computed next on the same stream starts when it is there, and the reader goes on meanwhile. torch keeps pinned
    memory that a copy still reads from.
    """
    if device.type != "cuda" or raw.device.type != "cpu":
        return raw.to(device=device, dtype=dtype)
    return raw.pin_memory().to(device, non_blocking=True).to(dtype)


def own_stream(device: torch.device) -> AbstractContextManager[object]:
    """Work of the calling thread within runs beside that of other threads on a GPU; nothing elsewhere.

    Every tensor must be used within the context that it was made in. Results are brought back by a copy that waits.
    """
    if device.type != "cuda":
        return nullcontext()
    return torch.cuda.stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]
