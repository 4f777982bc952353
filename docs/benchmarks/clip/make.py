"""Write the recipes and the task file of a published CLIP run: `python make.py clip-vit-base-patch32 8 WORK/b32-8`.

    WORK/b32-8/tasks.yaml       the test sets, class names and prompts of the tasks
    WORK/b32-8/METHOD/40.yaml   a recipe for each seed, and so for each order

What is in tasks/ are facts of the published runs; this file puts them together. It merges nothing and scores nothing.
"""

import argparse
from pathlib import Path
from typing import Any

import yaml

# In this order the published runs list their models before they shuffle them; the shorter lists begin the longer ones.
TASKS = (
    "sun397", "stanford-cars", "resisc45", "eurosat", "svhn", "gtsrb", "mnist", "dtd",
    "oxford_flowers102", "pcam", "fer2013", "oxford-iiit-pet", "stl10", "cifar100",
    "cifar10", "food101", "fashion_mnist", "emnist_letters", "kmnist", "rendered-sst2",
)  # fmt: skip
COUNTS = (8, 14, 20)
BACKBONES = ("clip-vit-base-patch32", "clip-vit-base-patch16", "clip-vit-large-patch14")
SEEDS = range(40, 50)
# Settings as in published runs, beside dopkit's own methods with their defaults.
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "dop-published": ("dop", {"solver": "adam", "rank_rule": "below", "other": "half"}),
    "opcm-published": ("opcm", {"alpha": 0.5, "rank_rule": "below"}),
    "task_arithmetic-published": ("task_arithmetic", {"lambda": 0.3}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the recipes and the task file of a published CLIP run.")
    parser.add_argument("backbone", choices=BACKBONES)
    parser.add_argument("count", type=int, choices=COUNTS, help="how many tasks")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--method", action="append", help=f"a method of dopkit, or {', '.join(PUBLISHED)}; repeatable")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="default: 40 to 49")
    options = parser.parse_args()
    write(options.folder / "tasks.yaml", tasks(options.backbone, options.count))
    for method in options.method or ["dop"]:
        for seed in options.seeds:
            path = options.folder / method / f"{seed}.yaml"
            write(path, recipe(options.backbone, options.count, method, seed))


def recipe(backbone: str, count: int, method: str, seed: int) -> dict[str, Any]:
    """The merge of the first `count` tasks in the order of `seed`. The checkpoints are vision towers of the base."""
    merge_method, parameters = PUBLISHED.get(method, (method, {}))
    data: dict[str, Any] = {"merge_method": merge_method, "base_model": f"openai/{backbone}"}
    if parameters:
        data["parameters"] = parameters
    return data | {"models": [checkpoint(backbone, task) for task in TASKS[:count]], "order": "shuffle", "seed": seed}


def tasks(backbone: str, count: int) -> dict[str, Any]:
    """The task file: the first `count` tasks. Their prompts are read by the base of the merge."""
    return {"tasks": [task_entry(backbone, task) for task in TASKS[:count]]}


def task_entry(backbone: str, task: str) -> dict[str, Any]:
    facts = yaml.safe_load((Path(__file__).parent / "tasks" / f"{task}.yaml").read_text(encoding="utf-8"))
    return {"name": task, "kind": "image-classification", "model": checkpoint(backbone, task), **facts}


def checkpoint(backbone: str, task: str) -> str:
    return f"tanganke/{backbone}_{task}"


def write(path: Path, data: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
