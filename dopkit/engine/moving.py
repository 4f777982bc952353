"""Tensors on their way to a device.

No machine that this was written on has a GPU: what is tested is which calls are made, not how fast they are.
"""

from __future__ import annotations

import torch


class Mover:
    """Brings tensors to one device.

    To a GPU they go out of pinned memory, on a stream of their own: while one model is folded, the next is on its way.
    The work there goes on in one stream, so that its order, and with it every bit of the result, is always the same.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def __call__(self, raw: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """``raw`` on the device in ``dtype``: the tensor itself where it is that already."""
        if self._copies is None or raw.device.type != "cpu":
            return raw.to(device=self._device, dtype=dtype)
        pinned = raw.pin_memory()  # torch keeps it while a copy still reads from it
        with torch.cuda.stream(self._copies):
            there = pinned.to(self._device, non_blocking=True)  # in its own dtype, which is seldom the larger one
        work = torch.cuda.current_stream(self._device)
        work.wait_stream(self._copies)
        there.record_stream(work)  # its memory is not given to another copy before the work has used it
        return there.to(dtype)
