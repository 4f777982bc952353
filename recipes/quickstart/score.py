"""Print what each model scores on each task: base, experts, plain mean, DOP, and any folder given.

    python recipes/quickstart/score.py [MODEL_FOLDER ...]

Without arguments it merges the experts with dopkit first: the plain mean, and DOP with each of its solvers. A score is
the share of held-out images, in percent, that a task's frozen head labels rightly on the model's features.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoModel, PreTrainedModel
from transformers.utils import logging

HERE = Path(__file__).resolve().parent
METHODS = {
    "plain mean": "merge_method: average",
    "DOP exact": "merge_method: dop\nparameters: {solver: exact}",
    "DOP adam": "merge_method: dop\nparameters: {solver: adam}",
}


def pixels(images: np.ndarray) -> torch.Tensor:
    """uint8 grey [n, h, w] -> float [n, 3, h, w] from -1 to 1, as preprocessor_config.json has it."""
    return (torch.from_numpy(images).float() / 127.5 - 1)[:, None].repeat(1, 3, 1, 1)


@torch.no_grad()
def features(model: PreTrainedModel, images: torch.Tensor, batch: int = 512) -> torch.Tensor:
    """The class token after the last layer norm, [n, hidden]."""
    model.eval()
    return torch.cat([model(part).last_hidden_state[:, 0] for part in images.split(batch)])


class Heldout:
    """The held-out images of every task, and the frozen heads that read a model's features."""

    def __init__(self, folder: Path = HERE):
        arrays = np.load(folder / "heldout.npz")
        self.heads = load_file(folder / "heads.safetensors")
        self.tasks = [name.removesuffix(".images") for name in arrays.files if name.endswith(".images")]
        self.images = {task: pixels(arrays[f"{task}.images"]) for task in self.tasks}
        self.labels = {task: torch.from_numpy(arrays[f"{task}.labels"]).long() for task in self.tasks}

    def score(self, model: PreTrainedModel) -> list[float]:
        return [self.score_task(model, task) for task in self.tasks]

    def score_task(self, model: PreTrainedModel, task: str) -> float:
        weight, bias = self.heads[f"{task}.weight"], self.heads[f"{task}.bias"]
        guesses = (features(model, self.images[task]) @ weight.T + bias).argmax(dim=1)
        return 100 * (guesses == self.labels[task]).float().mean().item()


def merge(method: str, experts: list[Path], out: Path) -> Path:
    import dopkit

    lines = [method, f"base_model: '{HERE / 'base'}'", "models:", *(f"  - '{expert}'" for expert in experts)]
    recipe = out.with_suffix(".yaml")
    recipe.write_text("\n".join(lines) + "\n")
    dopkit.run(dopkit.load_recipe(recipe), out)
    return out


def print_row(name: str, scores: list[float]) -> None:
    mean = sum(scores) / len(scores)
    print(f"{name:<16}" + "".join(f"{score:>10.1f}" for score in [*scores, mean]), flush=True)


def main(given: list[str]) -> None:
    logging.disable_progress_bar()  # a bar for every model would hide the table
    heldout = Heldout()

    def show(name: str, folder: Path) -> None:
        print_row(name, heldout.score(AutoModel.from_pretrained(folder, add_pooling_layer=False)))

    print(f"{'':<16}" + "".join(f"{title:>10}" for title in [*heldout.tasks, "average"]))
    experts = [HERE / task for task in heldout.tasks]
    for folder in [HERE / "base", *experts]:
        show(folder.name, folder)
    for folder in map(Path, given):
        show(folder.name, folder)
    if not given:
        with tempfile.TemporaryDirectory() as scratch:
            for number, (name, method) in enumerate(METHODS.items()):
                show(name, merge(method, experts, Path(scratch) / str(number)))


if __name__ == "__main__":
    main(sys.argv[1:])
