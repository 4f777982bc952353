"""Unit tests for dopkit.units: sizes and times, read and written."""

from __future__ import annotations

import pytest

from dopkit.units import parse_size, round_up, show_seconds, show_shape, show_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1000", 1000),
        ("1B", 1),
        ("4GB", 4_000_000_000),
        ("4 gb", 4_000_000_000),
        ("512 MiB", 536_870_912),
        ("1.5g", 1_500_000_000),
        ("1.5GiB", 1_610_612_736),
        (" 2 t ", 2_000_000_000_000),
        ("0.001k", 1),
        ("9007199254740993", 9_007_199_254_740_993),  # a float would lose the last digit
    ],
)
def test_a_size_is_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "GB",
        "4GBs",
        "-4GB",
        "1e9",
        "1,5GB",
        ".5GB",
        "5i",
        "5iB",
        "4 G B",
        "nan",
        "inf",
        "9" * 400,
        "4\u212aB",
        "٤GB",
    ],
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size; write it like 4GB, 512MB or 1.5GiB"):
        parse_size(text)


@pytest.mark.parametrize("text", ["0", "0GB", "0.4"])
def test_no_room_at_all_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no room at all"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1234, "1.23 kB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),  # not 1e+03 kB
        (12_345_678, "12.3 MB"),
        (5_000_000_000, "5 GB"),
        (999_999_999_999, "1 TB"),
        (1_234_000_000_000_000, "1,230 TB"),
        (0.4, "0 B"),
        (-1500, "-1.5 kB"),
    ],
)
def test_a_size_is_shown_to_three_digits(size: float, text: str) -> None:
    assert show_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (0.44, "0.4 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),  # not 10.0 s
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599.6, "1 h 00 min"),
        (7530, "2 h 05 min"),
        (90_000, "25 h 00 min"),
    ],
)
def test_a_time_is_shown(seconds: float, text: str) -> None:
    assert show_seconds(seconds) == text


def test_a_shape_is_shown() -> None:
    assert [show_shape(shape) for shape in [(), (7,), (128256, 4096), (0, 3)]] == ["scalar", "7", "128256x4096", "0x3"]


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (1, "5MB"),
        (435_000_001, "440MB"),
        (995_500_000, "1GB"),
        (1_000_000_000, "1.01GB"),
        (12_340_000_000, "12.4GB"),
        (999_999_000_000, "1.01TB"),
    ],
)
def test_a_size_to_ask_for_is_a_little_more(size: int, text: str) -> None:
    assert round_up(size) == text
    assert size < parse_size(text) <= 1.02 * size + 5_000_000
