"""The published CLIP runs in docs/benchmarks/clip: what make.py writes, dopkit reads; the orders are theirs."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import scored
import tiny
import yaml

import dopkit
from dopkit import methods
from dopkit.evaluation import evaluate_model
from dopkit.evaluation.tasks import parse_tasks

FOLDER = Path(__file__).parent.parent / "docs" / "benchmarks" / "clip"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"clip_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make, collect = script("make"), script("collect")

BY_COUNT = [(backbone, count) for backbone in make.BACKBONES for count in make.COUNTS]
# Classes and templates of each task, as counted in the sources that the README names.
SIZES = {
    "sun397": (397, 2), "stanford-cars": (196, 8), "resisc45": (45, 18), "eurosat": (10, 3), "svhn": (10, 1),
    "gtsrb": (43, 3), "mnist": (10, 1), "dtd": (47, 8), "oxford_flowers102": (102, 1), "pcam": (2, 1),
    "fer2013": (7, 6), "oxford-iiit-pet": (37, 1), "stl10": (10, 2), "cifar100": (100, 18), "cifar10": (10, 18),
    "food101": (101, 1), "fashion_mnist": (10, 2), "emnist_letters": (26, 1), "kmnist": (10, 1),
    "rendered-sst2": (2, 1),
}  # fmt: skip


def as_read(backbone: str, count: int, method: str, seed: int, folder: Path) -> dopkit.Recipe:
    path = folder / method / f"{seed}.yaml"
    make.write(path, make.recipe(backbone, count, method, seed))
    return dopkit.load_recipe(path)


# The methods that merge any number of models, without a parameter that only the user can know.
ANY_NUMBER = [name for name, method in methods.known().items()
              if method.most_models is None and not method.parameters.required]  # fmt: skip


@pytest.mark.parametrize(("backbone", "count"), BY_COUNT)
def test_every_recipe_is_read(backbone: str, count: int, tmp_path: Path) -> None:
    for method in (*ANY_NUMBER, *make.PUBLISHED):
        recipe = as_read(backbone, count, method, 40, tmp_path)
        assert recipe.merge_method == method.removesuffix("-published")
        assert recipe.base_model is not None and recipe.base_model.text == f"openai/{backbone}"
        assert [entry.model.text for entry in recipe.models] == [
            f"tanganke/{backbone}_{task}" for task in make.TASKS[:count]
        ]


def test_published_parameters(tmp_path: Path) -> None:
    given = as_read("clip-vit-base-patch32", 8, "dop-published", 40, tmp_path).parameters.in_force()
    published = {"alpha": 0.8, "svd_epsilon": 0.99999, "svd_proj_space": "uv", "lr": 1e-4, "num_steps": 200}
    published |= {"mgda": True, "ema": True, "ema_beta": 0.999, "solver": "adam", "rank_rule": "below", "other": "half"}
    assert {key: given[key] for key in published} == published


@pytest.mark.parametrize(("backbone", "count"), BY_COUNT)
def test_every_task_file_is_read(backbone: str, count: int, tmp_path: Path) -> None:
    make.write(tmp_path / "tasks.yaml", make.tasks(backbone, count))
    found = parse_tasks((tmp_path / "tasks.yaml").read_text(encoding="utf-8"), tmp_path)
    models = [str(entry) for entry in make.recipe(backbone, count, "dop", 40)["models"]]
    assert [task.name for task in found] == list(make.TASKS[:count])
    assert [task.model for task in found] == models
    for task in found:
        assert task.dataset is not None and task.dataset.repo is not None and "/" in task.dataset.repo
        assert task.zero_shot is not None and task.base is None  # that of the merge
        assert (len(set(task.zero_shot.classes)), len(set(task.zero_shot.templates))) == SIZES[task.name]


def test_the_three_suites_grow() -> None:
    assert len(make.TASKS) == len(set(make.TASKS)) == max(make.COUNTS) == 20
    assert {path.stem for path in (FOLDER / "tasks").iterdir()} == set(make.TASKS)
    models = [make.recipe("clip-vit-base-patch32", count, "dop", 40)["models"] for count in make.COUNTS]
    assert models[0] == models[1][:8] and models[1] == models[2][:14]


@pytest.mark.parametrize("count", make.COUNTS)
def test_orders_are_those_of_the_published_runs(count: int, tmp_path: Path) -> None:
    """They seed Python's global generator with the seed, and shuffle the list of names."""
    orders = set()
    for seed in make.SEEDS:
        recipe = as_read("clip-vit-base-patch32", count, "dop", seed, tmp_path).drawn()
        order = tuple(entry.model.text.partition("_")[2] for entry in recipe.models)
        names = list(make.TASKS[:count])
        state = random.getstate()
        random.seed(seed)
        random.shuffle(names)
        random.setstate(state)
        assert order == tuple(names)
        orders.add(order)
    assert len(orders) == 10


def test_one_order_by_name(tmp_path: Path) -> None:
    recipe = as_read("clip-vit-base-patch32", 8, "dop", 40, tmp_path).drawn()
    order = ["resisc45", "gtsrb", "eurosat", "stanford-cars", "sun397", "mnist", "svhn", "dtd"]
    assert [entry.model.text.partition("_")[2] for entry in recipe.models] == order


def test_a_run_of_it_from_recipe_to_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What make.py writes, with a tiny whole CLIP as the base, its towers as checkpoints, and small data."""
    from transformers import CLIPVisionModel

    recipe = make.recipe("clip-vit-base-patch32", 8, "dop", 40)
    tasks = make.tasks("clip-vit-base-patch32", 8)["tasks"][:2]
    whole = scored.make_clip(tmp_path / "clip")
    CLIPVisionModel.from_pretrained(whole).save_pretrained(tmp_path / "tower")
    recipe |= {"base_model": "./clip", "models": [f"./{task['name']}" for task in tasks]}
    for seed, task in enumerate(tasks):
        tiny.make_expert(tmp_path / "tower", tmp_path / task["name"], seed)
        task["zero_shot"] |= {"classes": ["cat", "dog"]}
        task |= {"model": task["name"], "data": "./data.npz", "split": None, "limit": 8}
    np.savez(tmp_path / "data.npz", image=scored.grey(8), label=np.arange(8) % 2)
    make.write(tmp_path / "40.yaml", recipe)
    make.write(tmp_path / "tasks.yaml", {"tasks": tasks})
    dopkit.run(dopkit.load_recipe(tmp_path / "40.yaml"), tmp_path / "40", dopkit.Options(save_steps=True))
    assert type(dopkit.load(tmp_path / "40")).__name__ == "CLIPVisionModel"
    found = evaluate_model(tmp_path / "40", tmp_path / "tasks.yaml", sources=True)
    assert [row["kind"] for row in found["rows"]] == ["base", "step", "step", "expert", "expert"]
    assert list(found["rows"][0]["scores"]) == [task["name"] for task in tasks]
    assert found["bwt"] is not None
    whole_alone = evaluate_model(whole, tmp_path / "tasks.yaml")["rows"][0]["scores"]
    assert {name: one["value"] for name, one in found["rows"][0]["scores"].items()} == {
        name: one["value"] for name, one in whole_alone.items()
    }


def put(folder: Path, acc: float | None, bwt: float | None, digest: str = "d") -> None:
    folder.mkdir(parents=True)
    data = {"layout": 1, "tasks": [{"name": "mnist", "digest": digest}], "rows": [], "acc": acc, "bwt": bwt}
    (folder / collect.FILE).write_text(json.dumps(data))


def test_collecting(tmp_path: Path) -> None:
    for seed, (acc, bwt) in enumerate([(0.70, -0.05), (0.74, -0.03), (0.78, 0.02)]):
        put(tmp_path / "dop" / str(seed), acc, bwt)
    put(tmp_path / "dop" / "3", None, None)
    put(tmp_path / "opcm" / "0", 0.5, 0.01)
    assert collect.table(collect.read(tmp_path)).splitlines() == [
        "| method | orders | ACC | BWT |",
        "|---|---|---|---|",
        "| dop | 3 | 74.0 ± 4.0 | -2.0 ± 3.6 |",  # sqrt((3^2 + 1^2 + 4^2) / 2) = 3.606
        "| opcm | 1 | 50.0 | +1.0 |",
        "",
        "dop: 1 not scored to the end, left out",
    ]


def test_runs_on_other_tasks_are_not_averaged(tmp_path: Path) -> None:
    put(tmp_path / "dop" / "0", 0.7, 0.0)
    put(tmp_path / "dop" / "1", 0.7, 0.0, digest="other")
    with pytest.raises(SystemExit, match="dop: its runs were not scored on the same tasks"):
        collect.table(collect.read(tmp_path))


def test_the_readme_lists_every_data_set() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    for task in make.TASKS:
        facts = yaml.safe_load((FOLDER / "tasks" / f"{task}.yaml").read_text(encoding="utf-8"))
        assert f"| `{task}` | `{facts['data']}` |" in text
