"""What the rules of the methods need: memory and time as functions of a shape. Estimates, for the plan."""

from __future__ import annotations

import math
from collections.abc import Callable

FLOAT32 = 4  # bytes


def copies(number: int) -> Callable[[tuple[int, ...]], int]:
    def working_bytes(shape: tuple[int, ...]) -> int:
        return FLOAT32 * number * math.prod(shape)

    return working_bytes


def elementwise_effort(shape: tuple[int, ...]) -> float:
    return 2e-9 * math.prod(shape)


def exact_effort(shape: tuple[int, ...]) -> float:
    """Eigenproblems of both sides."""
    m, n = sorted(shape[-2:])
    return 0.7e-9 * (m**3 + min(n, 2 * m) ** 3)


def adam_effort(shape: tuple[int, ...]) -> float:
    """Six products a step, at the published number of steps."""
    m, n = sorted(shape[-2:])
    return 1.4e-8 * m * m * n


def exact_bytes(shape: tuple[int, ...]) -> int:
    """Upper estimate for the closed form on an (m, n) matrix, m <= n: three models, and float64 factors.

    The constants were fitted to measured peaks; a fifth and 40 MB are for the allocator and the linear algebra library.
    """
    m, n = sorted(shape[-2:])
    factors = 8 * (3.5 * m * m + m * n + 4 * n * n) if n <= 2 * m else 8 * 7.5 * (2 * m) ** 2
    return int(1.2 * (3 * FLOAT32 * m * n + factors)) + 40_000_000


def adam_bytes(shape: tuple[int, ...]) -> int:
    """Upper estimate for the published procedure: three models, gradients, Adam's moments; fitted as above."""
    m, n = sorted(shape[-2:])
    return int(1.2 * FLOAT32 * (3 + 17.5) * m * n) + 40_000_000
