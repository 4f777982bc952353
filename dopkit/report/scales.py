"""From numbers to places and shades: linear and logarithmic axes with ticks, and the steps of a colour ramp.

Knows no markup.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

SHADES = 10  # steps of a colour ramp, from 0 for the low end to 9 for the high end
_LARGEST = 1e100  # squares and sums of such numbers are still numbers
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Scale:
    """An axis: values from ``low`` to ``high`` lie from ``start`` to ``end``. ``ticks`` are values to be labelled."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    log: bool = False

    def at(self, value: float) -> float | None:
        """Where a value lies; None when a logarithmic axis has no place for it."""
        if self.log:
            if value <= 0:
                return None
            low, high, value = math.log10(self.low), math.log10(self.high), math.log10(value)
        else:
            low, high = self.low, self.high
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def linear(values: Iterable[float], start: float, end: float, count: int = 4) -> Scale:
    """An axis that holds the values, with about ``count`` round ticks; its ends are ticks."""
    found = list(values)
    low, high = (min(found), max(found)) if found else (0.0, 1.0)
    if low == high:
        pad = abs(low) / 10 or 1.0
        low, high = low - pad, high + pad
    step = _round_step((high - low) / count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(step * index for index in range(first, last + 1))
    return Scale(ticks[0], ticks[-1], start, end, ticks)


def logarithmic(values: Iterable[float], start: float, end: float, most: int = 6) -> Scale:
    """An axis in whole decades that holds the positive values, with at most ``most`` ticks."""
    found = [value for value in values if value > 0]
    first = math.floor(math.log10(min(found)) + 1e-9) if found else 0
    last = math.ceil(math.log10(max(found)) - 1e-9) if found else 1
    last = max(last, first + 1)
    stride = math.ceil((last - first) / (most - 1))
    last = first + stride * math.ceil((last - first) / stride)
    ticks = tuple(10.0**power for power in range(first, last + 1, stride))
    return Scale(ticks[0], ticks[-1], start, end, ticks, log=True)


def shade(value: float, low: float, high: float) -> int:
    """The step of the ramp for a value, from 0 to SHADES - 1; values beyond the ends get the end's."""
    share = 0.5 if high <= low else (value - low) / (high - low)
    return min(SHADES - 1, max(0, int(share * SHADES)))


def power(value: float) -> str:
    """A power of ten as it is written: ``10⁻⁶``."""
    return "10" + str(round(math.log10(value))).translate(_SUPERSCRIPTS)


def plain(value: float) -> str:
    """A tick as it is written: no more digits than it needs."""
    return f"{value:.10g}".replace("-", "−") if abs(value) > 1e-12 else "0"


def short(value: float) -> str:
    """A loss or a norm to three digits: ``0.0123``, ``1.23e-6`` becomes ``1.23·10⁻⁶``."""
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        return (f"{value:#.3g}".rstrip(".") if abs(value) < 999.5 else f"{value:,.0f}").replace("-", "−")
    digits, exponent = f"{value:.2e}".split("e")
    return f"{digits}·10{str(int(exponent)).translate(_SUPERSCRIPTS)}".replace("-", "−")


def brief(value: float) -> str:
    """A loss to two digits: ``0.012``, ``1.2·10⁻⁶``."""
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        return short(float(f"{value:.1e}")).replace("0·", "·")
    return f"{value:#.2g}".rstrip(".") if abs(value) < 99.5 else short(value)


def finite(value: Any) -> float | None:
    """The value if it is a number that can be drawn."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    if not math.isfinite(found) or abs(found) > _LARGEST:
        return None
    return found if abs(found) >= 1 / _LARGEST else 0.0


def _round_step(rough: float) -> float:
    """The least of 1, 2, 2.5, 5 times a power of ten that is no less than ``rough``."""
    unit = 10.0 ** math.floor(math.log10(rough))
    return next(unit * times for times in (1, 2, 2.5, 5, 10) if unit * times >= rough * (1 - 1e-9))
