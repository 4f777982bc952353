"""The models that come with dopkit: tasks, heads and images belong together, and the merge is good for something."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import dopkit
from dopkit.evaluation.tasks import load_tasks
from dopkit.loading import load

FOLDER = Path(__file__).parent.parent / "recipes" / "quickstart"
TASKS = ("digits", "mnist", "fashion", "surfaces")


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = dopkit.load_recipe(FOLDER.with_suffix(".yaml"))
    return dopkit.run(recipe, tmp_path_factory.mktemp("quickstart") / "out").folder


def accuracy(model: torch.nn.Module, task: str) -> float:
    arrays = np.load(FOLDER / "heldout.npz")
    images = (torch.from_numpy(arrays[f"{task}.images"]).float() / 127.5 - 1)[:, None].repeat(1, 3, 1, 1)
    with torch.no_grad():
        guesses = model(images).logits.argmax(dim=1)
    return float((guesses.numpy() == arrays[f"{task}.labels"]).mean())


def test_every_task_has_its_images_and_its_expert() -> None:
    tasks = load_tasks(FOLDER / "tasks.yaml")
    assert tuple(task.name for task in tasks) == TASKS
    arrays = np.load(FOLDER / "heldout.npz")
    for task in tasks:
        assert task.path == FOLDER / "heldout.npz"
        assert task.model == task.name
        labels = arrays[task.columns["label"]]
        assert arrays[task.columns["image"]].shape == (len(labels), 28, 28) == (400, 28, 28)
        config = load(FOLDER / task.name).config
        assert set(labels.tolist()) == set(config.id2label)
        assert len(set(config.id2label.values())) == config.num_labels


@pytest.mark.parametrize("task", TASKS[:3])
def test_the_merge_is_better_than_the_base_at_what_it_learned(merged: Path, task: str) -> None:
    base = accuracy(load(merged, task, backbone=FOLDER / "base"), task)
    expert = accuracy(load(FOLDER / task), task)
    assert base + 0.03 < accuracy(load(merged, task), task) < expert
