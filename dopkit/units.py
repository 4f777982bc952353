"""Sizes and times as people write and read them. Decimal units, as the Hub counts: 1 GB is 10^9 bytes."""

from __future__ import annotations

import re

_FACTORS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", re.IGNORECASE)


def parse_size(text: str) -> int:
    """``"4GB"``, ``"512 MiB"``, ``"1.5g"`` or ``"1000"`` in bytes. Raises ValueError."""
    match = _SIZE.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is not a size; write it like 4GB, 512MB or 1.5GiB")
    number, prefix, binary = match.groups()
    factor = 1024 ** " KMGT".index(prefix.upper() or " ") if binary else _FACTORS[prefix.upper()]
    size = int(float(number) * factor)
    if size <= 0:
        raise ValueError(f"{text!r} is no room at all")
    return size


def show_size(size: float) -> str:
    """Bytes to three digits: ``1.23 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def show_seconds(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left:02d} min" if hours else f"{minutes} min {rest:02d} s"


def show_shape(shape: tuple[int, ...]) -> str:
    """``128256x4096``; a scalar is ``scalar``."""
    return "x".join(map(str, shape)) or "scalar"
