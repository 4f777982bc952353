"""What the rules of the methods need: memory and time as functions of a shape. Estimates, for the plan."""

from __future__ import annotations

import math
from collections.abc import Callable

from dopkit.methods.dop_terms import Sides

FLOAT32 = 4  # bytes


def copies(number: int) -> Callable[[tuple[int, ...]], int]:
    def working_bytes(shape: tuple[int, ...]) -> int:
        return FLOAT32 * number * math.prod(shape)

    return working_bytes


def elementwise_effort(shape: tuple[int, ...]) -> float:
    return 2e-9 * math.prod(shape)


def exact_effort(shape: tuple[int, ...]) -> float:
    """Eigenproblems of both sides, and about as much for products."""
    m, n = sorted(shape[-2:])
    return 0.4e-9 * (m**3 + min(n, 2 * m) ** 3)


def adam_effort(shape: tuple[int, ...]) -> float:
    """Six products a step, at the published number of steps."""
    m, n = sorted(shape[-2:])
    return 1.4e-8 * m * m * n


def exact_bytes(shape: tuple[int, ...]) -> int:
    """Upper estimate for the closed form on an (m, n) matrix, m <= n: three models, and float64 factors.

    The constants were fitted to measured peaks; a fifth and 40 MB are for the allocator and the linear algebra library.
    Matrices of less than 32 MB take more for their size: glibc keeps such blocks when they are freed.
    """
    m, n = sorted(shape[-2:])
    squares = 6 if 8 * m * n < 32 << 20 else 4
    factors = 8 * (3.5 * m * m + m * n + squares * n * n) if n <= 2 * m else 8 * 7.5 * (2 * m) ** 2
    return int(1.2 * (3 * FLOAT32 * m * n + factors)) + 40_000_000


def least_exact_bytes(shape: tuple[int, ...]) -> int:
    """The same with all on the disk that is not needed at the moment, fitted to measured peaks as well.

    The larger eigenproblem takes its matrix, the vectors, and twice as much for LAPACK to work in; a very wide matrix
    takes most for its models. The rest is blocks.
    """
    m, n = sorted(shape[-2:])
    models = 3 * FLOAT32 * m * n
    most = 8 * 4 * n * n if n <= 2 * m else max(8 * 4 * (2 * m) ** 2, models + 8 * 6 * m * m + 30_000_000)
    return int(1.05 * most) + 20_000_000


def adam_bytes(shape: tuple[int, ...]) -> int:
    """Upper estimate for the published procedure: three models, gradients, Adam's moments; fitted as above."""
    m, n = sorted(shape[-2:])
    return int(1.2 * FLOAT32 * (3 + 17.5) * m * n) + 40_000_000


def ties_effort(shape: tuple[int, ...]) -> float:
    """Every entry is looked at twice: for the threshold, and in the election."""
    return 1e-8 * math.prod(shape)


def ties_bytes(shape: tuple[int, ...]) -> int:
    """Four models or sums, the base, what is merged, and what is looked at one by one for the threshold."""
    return copies(7)(shape) + 30_000_000


def whole_bytes(number: int) -> Callable[[tuple[int, ...]], int]:
    """So many copies of a whole tensor, and the blocks in which it is looked at."""

    def working_bytes(shape: tuple[int, ...]) -> int:
        return copies(number)(shape) + 30_000_000

    return working_bytes


def drawing_effort(shape: tuple[int, ...]) -> float:
    """A random number for each entry, and what is done with it."""
    return 3e-8 * math.prod(shape)


def ranking_effort(shape: tuple[int, ...]) -> float:
    """Each row sorted."""
    return 1.5e-7 * math.prod(shape)


def angle_effort(shape: tuple[int, ...]) -> float:
    """Inner products, and a weighted sum."""
    return 2e-8 * math.prod(shape)


def diverging_effort(shape: tuple[int, ...]) -> float:
    """Two softmaxes of every row in float64, and three quantiles."""
    return 3.5e-7 * math.prod(shape)


def choosing_effort(shape: tuple[int, ...]) -> float:
    """A threshold looked for in every entry, and several passes over the models."""
    return 4e-8 * math.prod(shape)


def search_effort(shape: tuple[int, ...]) -> float:
    """Ten rounds of those."""
    return 4e-8 * math.prod(shape)


def joined_effort(shape: tuple[int, ...]) -> float:
    """An eigenproblem for each task, and a share of the two decompositions that make all vectors orthogonal."""
    m, n = sorted(shape[-2:])
    return 1e-9 * m**3 + 0.5e-9 * m * m * n


def joined_bytes(shape: tuple[int, ...]) -> int:
    """Upper estimate beside the models: all tasks' task vectors and singular vectors in float64, and factors."""
    m, n = sorted(shape[-2:])
    return int(1.2 * (2 * FLOAT32 * m * n + 8 * (9 * m * n + 6 * m * m))) + 40_000_000


def triplets_effort(shape: tuple[int, ...]) -> float:
    """One eigenproblem of the smaller side, and some products."""
    m, n = sorted(shape[-2:])
    return 0.35e-9 * m**3 + 0.15e-9 * m * m * n


def triplets_bytes(shape: tuple[int, ...]) -> int:
    """Upper estimate for a method that decomposes the merged task vector; fitted as above."""
    m, n = sorted(shape[-2:])
    return int(1.2 * (3 * FLOAT32 * m * n + 8 * (3 * m * n + 5 * m * m))) + 40_000_000


def _kept_sides(sides: Sides, shape: tuple[int, ...]) -> list[int]:
    """The lengths of the sides that sums are kept for, ascending."""
    rows, columns = shape[-2:]
    return sorted(length for length, kept in ((rows, sides.rows), (columns, sides.columns)) if kept)


def sums_effort(sides: Sides, shape: tuple[int, ...]) -> float:
    """A task's products, and a model's share of the eigenproblems at the end, of which there is one for each side."""
    m, n = sorted(shape[-2:])
    return 1.2e-10 * m * n * (m + n) + 0.4e-9 * m**3 + 1e-10 * sum(side**3 for side in _kept_sides(sides, shape))


def sums_bytes(sides: Sides, shape: tuple[int, ...]) -> int:
    """Upper estimate for sums over tasks and the minimum found from them; fitted as above."""
    m, n = sorted(shape[-2:])
    *smaller, larger = _kept_sides(sides, shape)
    factors = 8 * (5 * m * n + 4 * larger**2 + 2.5 * sum(side**2 for side in smaller))
    return int(1.2 * (3 * FLOAT32 * m * n + factors)) + 40_000_000


def covariance_effort(sides: Sides, shape: tuple[int, ...]) -> float:
    """A task's two products, and a model's share of what is solved at the end."""
    inputs = shape[-1] if sides.columns else shape[-2]
    m, n = sorted(shape[-2:])
    return 1.2e-10 * (2 * m * n * inputs + inputs**3 / 2 + m**3)


def covariance_bytes(sides: Sides, shape: tuple[int, ...]) -> int:
    """Upper estimate for two sets of sums and what is solved from them, or split into triplets; not measured."""
    inputs = shape[-1] if sides.columns else shape[-2]
    m, n = sorted(shape[-2:])
    factors = 8 * (10 * m * n + 5 * inputs**2 + 3 * m * m)
    return int(1.2 * (3 * FLOAT32 * m * n + factors)) + 40_000_000
