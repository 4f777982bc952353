"""Sizes and times as people write and read them. Decimal units, as the Hub counts: 1 GB is 10^9 bytes."""

from __future__ import annotations

import re
from fractions import Fraction

_PREFIXES = " KMGT"
_SIZE = re.compile(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*(?:([KMGT])(i?))?B?\s*", re.IGNORECASE | re.ASCII)


def parse_size(text: str) -> int:
    """``"4GB"``, ``"512 MiB"``, ``"1.5g"`` or ``"1000"`` in bytes. Raises ValueError."""
    match = _SIZE.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is not a size; write it like 4GB, 512MB or 1.5GiB")
    number, prefix, binary = match.groups()
    size = int(Fraction(number) * (1024 if binary else 1000) ** _PREFIXES.index((prefix or " ").upper()))
    if size == 0:
        raise ValueError(f"{text!r} is no room at all")
    return size


def show_size(size: float) -> str:
    """Bytes to three digits: ``1.23 GB``."""
    size = round(size)
    for unit in ("B", "kB", "MB", "GB"):
        shown = float(f"{size:.3g}")  # rounded before it is compared: 999.9 kB is 1 MB
        if abs(shown) < 1000:
            return f"{shown:g} {unit}"
        size /= 1000
    return f"{float(f'{size:.3g}'):,.10g} TB"


def round_up(size: int) -> str:
    """A size to ask for where so many bytes are needed, in a word that ``parse_size`` reads: ``435MB``.

    A little more than needed, since no two runs of a program take quite the same: 4 MB, and up to the next third digit.
    """
    size = max(size + 4_000_000, 1_000_000)
    unit = 10 ** max(6, len(str(size)) - 3)
    rounded = -(-size // unit) * unit
    for name, one in (("TB", 10**12), ("GB", 10**9)):
        if rounded >= one:
            return f"{rounded / one:g}{name}"
    return f"{rounded // 10**6}MB"


def show_seconds(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left:02d} min" if hours else f"{minutes} min {rest:02d} s"


def show_shape(shape: tuple[int, ...]) -> str:
    """``128256x4096``; a scalar is ``scalar``."""
    return "x".join(map(str, shape)) or "scalar"
