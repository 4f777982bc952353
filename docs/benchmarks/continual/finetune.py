"""Fine-tune one expert for each task of a suite: `python docs/benchmarks/continual/finetune.py WORK/vision`.

The protocol is CLIP's, whose heads come from outside: the head is fitted to features of the *base*, strongly
regularised, from few samples, and then frozen; only the backbone learns. An expert that is there already is not trained
again. One process uses one core; start two with different --task to use two.
"""

import argparse
import json
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from classifiers import Suite
from torch.nn.functional import cross_entropy, one_hot
from transformers import PreTrainedModel

RATES = {"image-classification": 1e-5, "text-classification": 2e-5}
HEAD_SAMPLES = 100  # the first ones, so 10 of each of 10 classes
PENALTY = 1.0  # of the ridge, in units of the features' mean variance
SEEN = 3000  # samples: three epochs of 1,000
BATCH = 32
SCALES = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]


def main() -> None:
    parser = argparse.ArgumentParser(description="Fine-tune the experts of a suite that vision.py or text.py prepared.")
    parser.add_argument("suite", type=Path, help="WORK/vision or WORK/text")
    parser.add_argument("--task", action="append", help="only this task (may be given several times)")
    parser.add_argument("--rate", type=float, help="learning rate, to try another than the suite's")
    parser.add_argument("--experts", default="experts", help="folder for the experts, inside the suite's")
    options = parser.parse_args()
    torch.set_num_threads(1)
    suite = Suite(options.suite)
    unknown = set(options.task or []) - set(suite.tasks)
    if unknown:
        raise SystemExit(f"{options.suite} has no task {', '.join(sorted(unknown))}; it has {', '.join(suite.tasks)}")
    for task in options.task or suite.tasks:
        folder = options.suite / options.experts / task
        if not folder.is_dir():
            make_expert(suite, task, folder, options.rate or RATES[suite.kind])


def make_expert(suite: Suite, task: str, folder: Path, rate: float) -> None:
    started = time.monotonic()
    torch.manual_seed(0)
    inputs, labels, classes = suite.data(task, ".train")
    model = suite.model(suite.folder / "base", classes)
    scale = fit_head(suite, model, inputs, labels)
    loss = train(suite, model, inputs, labels, rate)
    seconds = round(time.monotonic() - started)
    save(suite, model, folder, {"rate": rate, "head_scale": scale, "loss": loss, "seconds": seconds})
    print(f"{task}: mean loss of the last steps {loss:.3f}, {seconds} s", flush=True)


@torch.no_grad()
def fit_head(suite: Suite, model: PreTrainedModel, inputs: np.ndarray, labels: torch.Tensor) -> float:
    """Ridge regression from the base's features to one-hot labels, times one scale for all logits. Then frozen.

    The scale, which stands for CLIP's temperature, has the least cross-entropy on the training samples not used before
    (all of them when there are no others).
    """
    features = suite.features(model, inputs)
    seen = features[:HEAD_SAMPLES]
    targets = one_hot(labels[:HEAD_SAMPLES], model.config.num_labels).to(seen.dtype)
    centre, prior = seen.mean(dim=0), targets.mean(dim=0)
    gram = (seen - centre).T @ (seen - centre)
    penalty = PENALTY * gram.trace() / len(gram)
    weight = torch.linalg.solve(gram + penalty * torch.eye(len(gram)), (seen - centre).T @ (targets - prior))
    logits, others = (features - centre) @ weight + prior, slice(HEAD_SAMPLES, None)
    losses = [cross_entropy(scale * logits[others], labels[others]).item() for scale in SCALES]
    scale = SCALES[int(np.argmin(losses))]
    model.classifier.weight.copy_(scale * weight.T)
    model.classifier.bias.copy_(scale * (prior - centre @ weight))
    model.classifier.requires_grad_(False)
    return scale


def train(suite: Suite, model: PreTrainedModel, inputs: np.ndarray, labels: torch.Tensor, rate: float) -> float:
    """AdamW without weight decay, the rate falling linearly to nothing; returns the mean loss of the last 20 steps."""
    model.train()
    optimizer = torch.optim.AdamW(model.base_model.parameters(), lr=rate, weight_decay=0.0, fused=True)
    steps = SEEN // BATCH
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    epochs = [torch.randperm(len(labels)) for _ in range(-(-SEEN // len(labels)))]
    losses = []
    for chosen in torch.cat(epochs)[: steps * BATCH].view(steps, BATCH):
        with torch.autocast("cpu", torch.bfloat16):  # products only; weights and optimiser are float32
            logits = model(**suite.encode(inputs[chosen.numpy()])).logits
        loss = cross_entropy(logits.float(), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.base_model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    model.eval()
    return sum(losses[-20:]) / 20


def save(suite: Suite, model: PreTrainedModel, folder: Path, facts: dict[str, float]) -> None:
    """The expert appears under its name only when it is complete."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    suite.processor.save_pretrained(partial)
    (partial / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
    partial.rename(folder)


if __name__ == "__main__":
    main()
