"""A backbone with a classification head as a plain transformers model: open it, feed it, score it.

Knows the suite's files but neither training nor merging.
"""

from pathlib import Path

import numpy as np
import torch
import yaml
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    BertForSequenceClassification,
    Dinov2ForImageClassification,
    PreTrainedModel,
)
from transformers.utils import logging

logging.set_verbosity_error()  # a base has no head: transformers warns that it makes a new one
logging.disable_progress_bar()

ARCHITECTURES = {
    "image-classification": Dinov2ForImageClassification,
    "text-classification": BertForSequenceClassification,
}


class Suite:
    """The tasks of a suite's folder, and how its inputs become tensors."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tasks = {task["name"]: task for task in yaml.safe_load((folder / "tasks.yaml").read_text())["tasks"]}
        first = next(iter(self.tasks.values()))
        self.kind: str = first["kind"]
        self.max_length: int | None = first.get("max_length")
        self.column = "images" if self.kind == "image-classification" else "text"
        processor = AutoImageProcessor if self.column == "images" else AutoTokenizer
        self.processor = processor.from_pretrained(folder / "base")

    def data(self, task: str, part: str = "") -> tuple[np.ndarray, torch.Tensor, list[str]]:
        """Inputs, labels and class names; `part` is "" for the held-out samples or ".train"."""
        with np.load(self.folder / f"data/{task}{part}.npz") as arrays:
            return arrays[self.column], torch.from_numpy(arrays["labels"]), arrays["classes"].tolist()

    def model(self, folder: Path, classes: list[str]) -> PreTrainedModel:
        """The model of `folder`, in eval mode; with an untrained head if it is a base."""
        labels = dict(enumerate(classes))
        named = {"id2label": labels, "label2id": {name: number for number, name in labels.items()}}
        return ARCHITECTURES[self.kind].from_pretrained(folder, num_labels=len(classes), **named).eval()

    def encode(self, inputs: np.ndarray) -> dict[str, torch.Tensor]:
        if self.column == "images":
            return dict(self.processor(images=list(inputs), return_tensors="pt"))
        limits = {"padding": True, "truncation": True, "max_length": self.max_length}
        return dict(self.processor(inputs.tolist(), return_tensors="pt", **limits))

    @torch.no_grad()
    def features(self, model: PreTrainedModel, inputs: np.ndarray, batch: int = 50) -> torch.Tensor:
        """What the head reads, [n, width]."""
        found: list[torch.Tensor] = []
        hook = model.classifier.register_forward_pre_hook(lambda _, arguments: found.append(arguments[0]))
        for start in range(0, len(inputs), batch):
            model(**self.encode(inputs[start : start + batch]))
        hook.remove()
        return torch.cat(found)

    @torch.no_grad()
    def accuracy(self, model: PreTrainedModel, task: str) -> float:
        """On the held-out samples, from 0 to 1."""
        inputs, labels, _ = self.data(task)
        logits = model.classifier(self.features(model, inputs))
        return logits.argmax(dim=1).eq(labels).double().mean().item()
