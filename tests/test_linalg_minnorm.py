"""The point of least norm between two vectors. Run: python -m pytest tests/test_linalg_minnorm.py"""

import pytest
import torch

from dopkit.linalg.minnorm import min_norm_weight


@pytest.mark.parametrize(
    ("first", "second", "weight"),
    [
        ((1.0, 0.0), (0.0, 1.0), 0.5),
        ((2.0, 0.0), (0.0, 1.0), 0.2),
        ((1.0, 0.0), (-3.0, 0.0), 0.75),  # opposed: the point is zero
        ((1.0, 0.0), (2.0, 0.0), 0.999),  # the first is the shortest point
        ((2.0, 1.0), (1.0, 0.0), 0.001),  # the second is
        ((1.0, 1.0), (1.0, 1.0), 0.999),  # equal: the reference decides for the first
    ],
)
def test_by_hand(first, second, weight):
    pairs = ((first, first), (first, second), (second, second))
    inner = [sum(a * b for a, b in zip(x, y, strict=True)) for x, y in pairs]
    assert min_norm_weight(*inner) == pytest.approx(weight, rel=1e-15)


def test_no_other_point_of_the_segment_is_shorter():
    generator = torch.Generator().manual_seed(0)
    grid = torch.linspace(0, 1, 2001, dtype=torch.float64)
    for _ in range(50):
        first, second = torch.randn(2, 3, generator=generator, dtype=torch.float64)
        weight = min_norm_weight(float(first @ first), float(first @ second), float(second @ second))
        norms = (grid[:, None] * first + (1 - grid)[:, None] * second).square().sum(1)
        found = float((weight * first + (1 - weight) * second).square().sum())
        # The limits 0.001 and 0.999 cost at most 0.1% of the way to the other end.
        allowed = 1e-12 if 0.001 < weight < 0.999 else 0.01 * float(norms.max())
        assert found <= float(norms.min()) + allowed
