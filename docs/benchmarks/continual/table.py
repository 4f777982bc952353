"""Does the suite measure something? `python docs/benchmarks/continual/table.py WORK/vision` prints a table.

Accuracy, on each task with the task's own frozen head, of the base, of the task's expert and of the plain mean of all
experts; and how large the task vectors are and how they lie to each other. Knows no merge but the mean.
"""

import argparse
import json
from pathlib import Path

import torch
from classifiers import Suite
from transformers import PreTrainedModel

Weights = dict[str, torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description="Score base, experts and their mean on every task of a suite.")
    parser.add_argument("suite", type=Path, help="WORK/vision or WORK/text")
    parser.add_argument("--experts", default="experts", help="folder of the experts, inside the suite's")
    options = parser.parse_args()
    torch.set_num_threads(1)
    suite = Suite(options.suite)
    folders = {task: options.suite / options.experts / task for task in suite.tasks}
    missing = [task for task, folder in folders.items() if not folder.is_dir()]
    if missing:
        raise SystemExit(f"not fine-tuned yet: {', '.join(missing)}")
    models = {task: suite.model(folder, suite.data(task)[2]) for task, folder in folders.items()}
    base = backbone(suite.model(options.suite / "base", ["one", "two"]))
    experts = {task: backbone(model) for task, model in models.items()}
    mean = {name: torch.stack([expert[name] for expert in experts.values()]).mean(dim=0) for name in base}
    table = {
        "accuracy": {
            task: {
                "base": score(suite, task, model, base),
                "mean": score(suite, task, model, mean),
                "expert": score(suite, task, model, experts[task]),
            }
            for task, model in models.items()
        },
        **relations(base, experts),
    }
    print(in_words(table))
    (options.suite / f"table-{options.experts}.json").write_text(json.dumps(table, indent=2) + "\n")


def backbone(model: PreTrainedModel) -> Weights:
    return {name: tensor.clone() for name, tensor in model.base_model.state_dict().items()}


def score(suite: Suite, task: str, model: PreTrainedModel, weights: Weights) -> float:
    """`weights` under the task's head; leaves them in `model`."""
    model.base_model.load_state_dict(weights)
    return suite.accuracy(model, task)


def relations(base: Weights, experts: dict[str, Weights]) -> dict[str, list[float] | list[list[float]]]:
    """Norms of the task vectors relative to the base's, and their cosines, over all matrices.

    Without the vectors: a few biases and scales of DINOv2 are larger than all of its matrices, and hardly move.
    """
    vectors = torch.stack([flat(expert) - flat(base) for expert in experts.values()])
    norms = vectors.norm(dim=1)
    cosines = vectors @ vectors.T / torch.outer(norms, norms)
    return {"relative_norms": (norms / flat(base).norm()).tolist(), "cosines": cosines.tolist()}


def flat(weights: Weights) -> torch.Tensor:
    return torch.cat([tensor.double().flatten() for tensor in weights.values() if tensor.ndim == 2])


def in_words(table: dict) -> str:
    """The table in Markdown, accuracies in percent."""
    rows = ["| task | base | mean of all | expert | task vector |", "|---|---|---|---|---|"]
    columns = ("base", "mean", "expert")
    for (task, scores), norm in zip(table["accuracy"].items(), table["relative_norms"], strict=True):
        rows.append(f"| {task} | " + " | ".join(f"{100 * scores[c]:.1f}" for c in columns) + f" | {100 * norm:.2f}% |")
    means = [sum(scores[c] for scores in table["accuracy"].values()) / len(table["accuracy"]) for c in columns]
    rows.append("| **mean** | " + " | ".join(f"{100 * value:.1f}" for value in means) + " | |")
    cosines = torch.tensor(table["cosines"])
    apart = cosines[~torch.eye(len(cosines), dtype=torch.bool)]
    return "\n".join(rows) + f"\n\nCosines between task vectors: {apart.min():.3f} to {apart.max():.3f}."


if __name__ == "__main__":
    main()
