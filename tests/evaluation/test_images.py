"""Unit tests for dopkit.evaluation.images."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dopkit.evaluation.images import pixels

GREY = np.arange(20, dtype=np.uint8).reshape(4, 5)
RGB = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
TRIPLE = np.stack([GREY] * 3, axis=2)


def png(array: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (GREY, TRIPLE),
        (GREY[:, :, None], TRIPLE),
        (GREY[None], TRIPLE),
        (RGB, RGB),
        (RGB.transpose(2, 0, 1), RGB),
        (np.concatenate([RGB, GREY[:, :, None]], axis=2), RGB),
        (GREY.tolist(), TRIPLE),
        (Image.fromarray(GREY), TRIPLE),
        (Image.fromarray(RGB), RGB),
        (png(GREY), TRIPLE),
        ({"bytes": png(RGB), "path": "a.png"}, RGB),
    ],
)
def test_every_form_becomes_the_same_pixels(image: Any, expected: Any) -> None:
    found = pixels(image)
    assert found.dtype == np.uint8
    assert np.array_equal(found, expected)


def test_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(RGB))
    assert np.array_equal(pixels(tmp_path / "a.png"), RGB)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (GREY.astype(np.float32), "an image is uint8 from 0 to 255, but this one is float32"),
        ([[0, 256]], "an image is uint8 from 0 to 255, but this one is int64"),
        (np.zeros((2, 4, 5), np.uint8), "but this one is 2x4x5"),
        (np.zeros(5, np.uint8), "but this one is 5"),
        (np.zeros((0, 5), np.uint8), "but this one is 0x5x1"),
        (np.uint8(3), "but this one is a single number"),
        (b"no image", "these bytes are no image that can be read"),
    ],
)
def test_what_is_no_image(image: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pixels(image)
