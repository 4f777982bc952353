"""Products of float32 numbers in float32: no TensorFloat-32, no bfloat16, whatever the process was told before.

torch's own default. But a program that merges through the library may have asked for faster products, for its training,
and so may the environment; with ten bits of a mantissa a solve is not the same. float64 is not affected.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_float32() -> Iterator[None]:
    """Within, float32 products are what they say; afterwards as before. The setting is the whole process's, so this
    belongs around everything that runs at once, not into each thread."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
