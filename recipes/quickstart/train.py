"""Make the quickstart models: a small base, one expert with its head per task, and the held-out images.

    pip install torch transformers safetensors accelerate scikit-learn scikit-image mlxtend
    apt-get install dataset-fashion-mnist        # Debian; for another folder: --fashion-folder
    python recipes/quickstart/train.py           # about 4 minutes on one core

Nothing is downloaded: the images ship inside these packages. With one thread the run repeats itself exactly on the same
machine and versions; elsewhere the last digits differ, and so does a score by a few tenths.

The base learns the first half of each task's classes from shifted images, all tasks at once; the classifiers it was
trained with are thrown away. Then each task gets a frozen head for all its classes: a ridge regression on the base's
features of a few images of each. An expert is the base with its backbone fine-tuned under that frozen head, gently, so
that what an expert learned is in the backbone alone and a merged backbone can be read with the same heads.
"""

import argparse
import copy
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from data import CLASSES, FASHION_FOLDER, SIZE, Task, load_tasks
from torch.nn.functional import cross_entropy, one_hot
from transformers import PreTrainedModel, ViTConfig, ViTForImageClassification, ViTImageProcessor, ViTModel

HIDDEN = 96
Head = tuple[torch.Tensor, torch.Tensor]  # weight [classes, hidden], bias [classes]


def pixels(images: np.ndarray) -> torch.Tensor:
    """uint8 grey [n, h, w] -> float [n, 3, h, w] from -1 to 1, as preprocessor_config.json has it."""
    return (torch.from_numpy(images).float() / 127.5 - 1)[:, None].repeat(1, 3, 1, 1)


@torch.no_grad()
def features(model: PreTrainedModel, images: torch.Tensor, batch: int = 512) -> torch.Tensor:
    """The class token after the last layer norm, [n, hidden]."""
    model.eval()
    return torch.cat([model(part).last_hidden_state[:, 0] for part in images.split(batch)])


class TrainingSet:
    """The training images of one task, drawn in random batches."""

    def __init__(self, task: Task, seed: int):
        self.images = pixels(task.images)
        self.labels = torch.from_numpy(task.labels)
        self.classes = int(self.labels.max()) + 1
        self.generator = torch.Generator().manual_seed(seed)

    def first_classes(self) -> torch.Tensor:
        """The places of the images in the first half of the classes."""
        return torch.nonzero(self.labels < math.ceil(self.classes / 2)).flatten()

    def few(self, per_class: int) -> torch.Tensor:
        """The places of a few images of every class."""
        order = torch.randperm(len(self.labels), generator=self.generator)
        return torch.cat([order[self.labels[order] == label][:per_class] for label in range(self.classes)])

    def batch(self, size: int, among: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        places = torch.randint(len(self.labels) if among is None else len(among), (size,), generator=self.generator)
        places = places if among is None else among[places]
        return self.images[places], self.labels[places]

    def shifted(self, images: torch.Tensor) -> torch.Tensor:
        down, right = torch.randint(-3, 4, (2,), generator=self.generator).tolist()
        return images.roll((down, right), dims=(2, 3))


def new_model() -> ViTModel:
    config = ViTConfig(
        hidden_size=HIDDEN,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=3 * HIDDEN,
        image_size=SIZE,
        patch_size=7,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return ViTModel(config, add_pooling_layer=False)


def optimise(parameters: list, loss: Callable[[], torch.Tensor], steps: int, rate: float, decay: float) -> None:
    """AdamW; the rate rises over the first steps and falls along a cosine."""
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
    warm = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1, (step + 1) / warm) * (1 + math.cos(math.pi * step / steps)) / 2
    )
    for _ in range(steps):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
        schedule.step()


def pretrain(sets: list[TrainingSet], steps: int = 1200, batch: int = 32) -> ViTModel:
    model = new_model().train()
    classifiers = torch.nn.ModuleList(torch.nn.Linear(HIDDEN, each.classes) for each in sets)
    places = [each.first_classes() for each in sets]

    def loss() -> torch.Tensor:
        drawn = [each.batch(batch, among) for each, among in zip(sets, places, strict=True)]
        images = torch.cat([each.shifted(images) for each, (images, _) in zip(sets, drawn, strict=True)])
        tokens = model(images).last_hidden_state[:, 0].split(batch)
        return sum(
            cross_entropy(classifier(token), labels, label_smoothing=0.1)
            for classifier, token, (_, labels) in zip(classifiers, tokens, drawn, strict=True)
        )

    optimise([*model.parameters(), *classifiers.parameters()], loss, steps, rate=1e-3, decay=0.05)
    return model


def fit_head(base: ViTModel, data: TrainingSet, per_class: int = 20, ridge: float = 0.3, spread: float = 2.0) -> Head:
    """Ridge regression to the one-hot labels, scaled so that its logits have the standard deviation ``spread``."""
    places = data.few(per_class)
    tokens = features(base, data.images[places])
    centre = tokens.mean(dim=0)
    tokens = tokens - centre
    targets = one_hot(data.labels[places], data.classes).float()
    gram = tokens.T @ tokens
    # The ridge is a share of the mean variance: the head must not lean on directions that few images happen to fill.
    gram += ridge * gram.diagonal().mean() * torch.eye(HIDDEN)
    weight = torch.linalg.solve(gram, tokens.T @ (targets - targets.mean(dim=0))).T
    weight *= spread / (tokens @ weight.T).std()
    return weight.contiguous(), -weight @ centre


def fine_tune(base: ViTModel, data: TrainingSet, head: Head, steps: int = 100, batch: int = 256) -> ViTModel:
    expert = copy.deepcopy(base).train()
    weight, bias = head

    def loss() -> torch.Tensor:
        images, labels = data.batch(batch)
        return cross_entropy(expert(images).last_hidden_state[:, 0] @ weight.T + bias, labels)

    # Weight decay would pull every expert the same way, towards zero: that is no part of a task vector.
    optimise(list(expert.parameters()), loss, steps, rate=5e-5, decay=0.0)
    return expert


def with_head(expert: ViTModel, head: Head, classes: Sequence[str]) -> ViTForImageClassification:
    """The classifier that was trained: the expert under its frozen head, the classes named."""
    config = ViTConfig(**{**expert.config.to_dict(), "id2label": dict(enumerate(classes))})
    config.label2id = {name: label for label, name in enumerate(classes)}
    model = ViTForImageClassification(config)
    model.vit.load_state_dict(expert.state_dict())
    model.classifier.load_state_dict({"weight": head[0], "bias": head[1]})
    return model


def task_vector_norm(base: ViTModel, expert: ViTModel) -> float:
    """The norm of the task vector over the norm of the base's weights."""
    old, new = (torch.nn.utils.parameters_to_vector(model.parameters()) for model in (base, expert))
    return ((new - old).norm() / old.norm()).item()


def save_model(model: PreTrainedModel, folder: Path) -> None:
    model.save_pretrained(folder)
    size = {"height": SIZE, "width": SIZE}
    ViTImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(folder)


def save_heldout(tasks: dict[str, Task], file: Path) -> None:
    arrays = {}
    for name, task in tasks.items():
        arrays[f"{name}.images"] = task.heldout_images
        arrays[f"{name}.labels"] = task.heldout_labels.astype(np.uint8)
    np.savez_compressed(file, **arrays)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--fashion-folder", type=Path, default=FASHION_FOLDER, help="folder of the *-ubyte.gz files")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent, help="where the models go")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tasks = load_tasks(options.fashion_folder)
    sets = {name: TrainingSet(task, seed) for seed, (name, task) in enumerate(tasks.items())}
    options.out.mkdir(parents=True, exist_ok=True)
    save_heldout(tasks, options.out / "heldout.npz")

    base = pretrain(list(sets.values()))
    save_model(base, options.out / "base")
    for name, data in sets.items():
        head = fit_head(base, data)
        expert = fine_tune(base, data, head)
        save_model(with_head(expert, head, CLASSES[name]), options.out / name)
        norm = 100 * task_vector_norm(base, expert)
        print(f"{name}: the task vector's norm is {norm:.1f}% of the base's", flush=True)


if __name__ == "__main__":
    main()
