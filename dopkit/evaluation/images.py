"""One image as pixels, from whatever form the data has it in. Knows no model, nor what a model wants of an image."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dopkit.errors import EvaluationError
from dopkit.evaluation.tables import optional

Pixels = NDArray[np.uint8]


def pixels(image: Any) -> Pixels:
    """uint8 [height, width, 3] of a path, the bytes of an image file, a Pillow image or an array. Raises ValueError.

    An array holds uint8: [h, w] grey, or [h, w, c] or [c, h, w] with 1 (grey), 3 or 4 channels (the fourth, alpha, is
    left out).
    """
    if isinstance(image, dict) and image.get("bytes") is not None:  # a Hub data set's image inside a parquet file
        image = image["bytes"]
    if isinstance(image, bytes | Path):
        image = _opened(image)
    if hasattr(image, "convert"):
        return np.asarray(image.convert("RGB"))
    return _rgb(np.asarray(image))


def _opened(image: bytes | Path) -> Any:
    reader = optional("PIL.Image", "reading images")
    try:
        with reader.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
            opened.load()
            return opened
    except EvaluationError:
        raise
    except Exception as error:  # Pillow raises many kinds for a file that is no image, or a bomb
        shown = f"{image} is" if isinstance(image, Path) else "these bytes are"
        raise ValueError(f"{shown} no image that can be read ({error})") from None


def _rgb(array: np.ndarray[Any, Any]) -> Pixels:
    if array.dtype == np.int64:  # a list of lists, as parquet has it
        array = array.astype(np.uint8) if array.size and array.min() >= 0 and array.max() < 256 else array
    if array.dtype != np.uint8:
        raise ValueError(f"an image is uint8 from 0 to 255, but this one is {array.dtype}")
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        shape = "x".join(map(str, array.shape)) or "a single number"
        raise ValueError(f"an image is [h, w], [h, w, channels] or [channels, h, w], but this one is {shape}")
    return np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array[:, :, :3]
