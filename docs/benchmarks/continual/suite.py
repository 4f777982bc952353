"""What the two suites share: a task's data, drawing samples, and the files that fine-tuning and evaluation read.

Knows nothing of where data comes from, nor of models. A suite is a folder:

    base/               the backbone, as a transformers checkpoint
    data/NAME.npz       held-out samples; data/NAME.train.npz: training samples, in the order in which they are drawn
    tasks.yaml          the tasks for `dopkit eval`
    experts/NAME/       made by finetune.py
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

TRAINING = 1000
HELD_OUT = 250


class Task(NamedTuple):
    """Inputs (images uint8 [n, h, w, 3], or texts as unicode strings [n]) with int64 labels [n] into `classes`."""

    classes: list[str]
    inputs: np.ndarray
    labels: np.ndarray
    heldout_inputs: np.ndarray
    heldout_labels: np.ndarray


def draw(inputs: np.ndarray, labels: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `count` samples, equally many of each class as far as they go: classes take turns, in random order."""
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    seen: dict[int, int] = {}
    turns = np.empty(len(labels), np.int64)  # how many of its class came before it
    for place, sample in enumerate(shuffled):
        label = int(labels[sample])
        turns[place] = seen.get(label, 0)
        seen[label] = turns[place] + 1
    chosen = shuffled[np.argsort(turns, kind="stable")][:count]
    return inputs[chosen], labels[chosen].astype(np.int64)


def split(classes: list[str], inputs: np.ndarray, labels: np.ndarray, seed: int = 0) -> Task:
    """A random, class-balanced split into held-out and training samples, for data whose samples are independent."""
    samples = np.arange(len(labels))
    heldout, _ = draw(samples, labels, HELD_OUT, seed)
    training = np.setdiff1d(samples, heldout)
    return Task(classes, inputs[training], labels[training], inputs[heldout], labels[heldout])


def write(folder: Path, kind: str, column: str, tasks: dict[str, Task], **settings: int) -> None:
    """Draw each task's samples into data/ and list them in tasks.yaml. `column`: what the inputs are called there."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    listed = []
    for number, (name, task) in enumerate(tasks.items()):
        training = draw(task.inputs, task.labels, TRAINING, seed=number)
        heldout = draw(task.heldout_inputs, task.heldout_labels, HELD_OUT, seed=number)
        classes = np.array(task.classes)
        for suffix, (inputs, labels) in {".train.npz": training, ".npz": heldout}.items():
            np.savez_compressed(folder / f"data/{name}{suffix}", **{column: inputs}, labels=labels, classes=classes)
        listed.append(
            {"name": name, "kind": kind, "data": f"./data/{name}.npz", "head": name, "model": name, **settings}
        )
        print(f"{name}: {len(classes)} classes, {len(training[1])} training, {len(heldout[1])} held out", flush=True)
    (folder / "tasks.yaml").write_text(yaml.safe_dump({"tasks": listed}, sort_keys=False))
