"""Scales against places worked out by hand."""

from __future__ import annotations

import math

import pytest

from dopkit.report import scales


def test_linear() -> None:
    scale = scales.linear([0.0, 9.0], 100, 0)
    assert scale.ticks == (0, 2.5, 5, 7.5, 10)
    assert [scale.at(value) for value in (0, 5, 10)] == [100, 50, 0]
    assert scales.linear([0.83, 0.87], 0, 1).ticks == pytest.approx((0.83, 0.84, 0.85, 0.86, 0.87))
    assert scales.linear([-3.0, 11.0], 0, 1).ticks == (-5, 0, 5, 10, 15)


@pytest.mark.parametrize("values", [[], [0.0], [5.0], [-1e-9], [1e90, -1e90]])
def test_a_linear_axis_has_a_length_whatever_it_holds(values: list[float]) -> None:
    scale = scales.linear(values, 0, 1)
    assert scale.low < scale.high and len(scale.ticks) >= 2
    for value in values:
        assert 0 <= (scale.at(value) or 0) <= 1


def test_logarithmic() -> None:
    scale = scales.logarithmic([2e-6, 0.0, 5e-4], 90, 0)
    assert scale.ticks == pytest.approx((1e-6, 1e-5, 1e-4, 1e-3))
    assert scale.at(1e-6) == pytest.approx(90) and scale.at(1e-3) == pytest.approx(0)
    assert scale.at(1e-5) == pytest.approx(60)
    assert scale.at(0.0) is None  # no place
    assert scales.logarithmic([1e-3], 0, 1).ticks == pytest.approx((1e-3, 1e-2))
    assert scales.logarithmic([], 0, 1).ticks == (1, 10)


def test_many_decades_get_few_ticks() -> None:
    scale = scales.logarithmic([1e-90, 1e90], 0, 1)
    assert len(scale.ticks) <= 6 and scale.low <= 1e-90 and scale.high >= 1e90


def test_shades() -> None:
    assert [scales.shade(value, 0, 1) for value in (-1, 0, 0.05, 0.1, 0.55, 0.999, 1, 2)] == [0, 0, 0, 1, 5, 9, 9, 9]
    assert scales.shade(3, 3, 3) == 5


def test_numbers_in_words() -> None:
    assert [scales.short(value) for value in (0, 1.8, 398.4, 999.6, 12345, 0.0012345, 1.234e-6, -2.5e-4)] == [
        "0", "1.80", "398", "1,000", "12,345", "0.00123", "1.23·10⁻⁶", "−2.50·10⁻⁴",
    ]  # fmt: skip
    assert [scales.brief(value) for value in (0, 0.8, 2.5, 1.84e-5, 1e-12)] == [
        "0", "0.80", "2.5", "1.8·10⁻⁵", "1.0·10⁻¹²",
    ]  # fmt: skip
    assert (scales.power(1e-6), scales.power(1), scales.power(1e12)) == ("10⁻⁶", "10⁰", "10¹²")
    assert (scales.plain(2.5), scales.plain(-3.0), scales.plain(1e-17)) == ("2.5", "−3", "0")


def test_what_can_be_drawn() -> None:
    assert (scales.finite(3), scales.finite(0.5), scales.finite(1e-200)) == (3.0, 0.5, 0.0)
    for value in (None, True, "3", math.nan, math.inf, 10**400, 1e300, [1]):
        assert scales.finite(value) is None
