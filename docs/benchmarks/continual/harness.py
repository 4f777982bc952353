"""Every continual method on a suite of experts, over ten orders: ACC, BWT, time and memory.

    python docs/benchmarks/continual/harness.py SUITE            # WORK/vision, WORK/text, or recipes/quickstart
    python docs/benchmarks/continual/tables.py SUITE-results.jsonl

SUITE holds base/, tasks.yaml, and the experts (in experts/, or beside base/). Every row goes as one line into the
results; what is there is not done again, so a run may be stopped at any time. Merges run in other processes
(merger.py), on one thread, and are measured there.

Scored are, as ACC and BWT need it, the last model on every task and each step's model on the task just learned.
"""

import argparse
import json
import random
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
import yaml
from merger import Measured, Merger
from recombine import Weights, models
from rows import MERGES, Merge, Row
from safetensors.torch import load_file

from dopkit.evaluation.metrics import acc, bwt
from dopkit.evaluation.running import evaluate
from dopkit.evaluation.targets import Target
from dopkit.evaluation.tasks import load_tasks


class Suite:
    """Base, experts and tasks of one benchmark, and what merges them."""

    def __init__(self, folder: Path, limit: int | None = None, merger: Merger | None = None) -> None:
        self.folder, self.base = folder, folder / "base"
        self.merger = merger or Merger(in_process=False)
        self.tasks = [replace(task, limit=limit) for task in load_tasks(folder / "tasks.yaml")]
        self.names = [task.name for task in self.tasks]

    def expert(self, name: str) -> Path:
        folder = self.folder / "experts" / name
        return folder if folder.is_dir() else self.folder / name

    def order(self, seed: int) -> list[str]:
        """The tasks as a recipe's `order: shuffle` draws them."""
        names = list(self.names)
        random.Random(seed).shuffle(names)
        return names


def main() -> None:
    parser = argparse.ArgumentParser(description="Run every continual method on a suite, over several orders.")
    parser.add_argument("suite", type=Path)
    parser.add_argument("--orders", type=int, default=10, help="orders, of seeds 0 to N-1")
    parser.add_argument("--limit", type=int, help="held-out samples a task, at most")
    parser.add_argument("--results", type=Path, help="where the lines go (default: SUITE-results.jsonl)")
    parser.add_argument("--only", help="merges whose name contains this")
    parser.add_argument(
        "--in-process", action="store_true", help="one process for all merges but those of the first order"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("medium")  # of scoring, alike for every row
    torch.backends.cuda.enable_flash_sdp(False)  # of the CPU as well: with "medium" it is the slowest for few tokens
    merger = Merger(options.in_process)
    suite = Suite(options.suite, options.limit, merger)
    results = Results(options.results or Path(f"{options.suite.name}-results.jsonl"))
    results.sources(suite)
    quick = [merge for merge in MERGES if merge.parameters.get("solver") != "adam"]
    for merges in (quick, [merge for merge in MERGES if merge not in quick]):  # the slow ones when the rest is there
        for seed in range(options.orders):
            for merge in merges:
                if options.only is None or options.only in merge.name:
                    run(suite, merge, seed, results)
    merger.close()


class Results:
    """The lines that are there, and more of them."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def has(self, merge: Merge, row: Row, seed: int) -> bool:
        key = {"merge": merge.name, "other": row.other, "scale": row.scale, "seed": seed}
        return any(key.items() <= line.items() for line in self.lines)

    def add(self, line: dict) -> None:
        self.lines.append(line)
        with self.file.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        print({key: value for key, value in line.items() if key != "scores"}, flush=True)

    def sources(self, suite: Suite) -> None:
        """The base on every task, every expert on its own."""
        if any(line["merge"] == "base" for line in self.lines):
            return
        with tempfile.TemporaryDirectory() as scratch:
            merged = make(suite, Merge("", "average", {}), suite.names, Path(scratch), steps=False)[0]
            targets = [Target("base", "step", suite.base, merged, 1)]
            targets += [
                Target(f"expert {name}", "expert", suite.expert(name), merged, model=name, seen=(name,))
                for name in suite.names
            ]
            base, *experts = evaluate(targets, suite.tasks)["rows"]
        scores = {name: base["scores"][name]["value"] for name in suite.names}
        own = {row["model"]: row["scores"][row["model"]]["value"] for row in experts}
        for name, values in (("base", scores), ("experts", own)):
            self.add({"merge": name, "acc": sum(values.values()) / len(values), "scores": values})


def run(suite: Suite, merge: Merge, seed: int, results: Results) -> None:
    """One merge in one order, and all of its rows that are not there."""
    rows = [row for row in merge.rows if not results.has(merge, row, seed)]
    if not rows:
        return
    order = suite.order(seed)
    with tempfile.TemporaryDirectory() as scratch:
        merged, measured = make(suite, merge, order, Path(scratch), steps=True, alone=seed == 0)
        made = [merged / f"steps/{step:02d}" for step in range(1, len(order))] + [merged]
        for row in rows:
            if row == merge.rows[0]:
                folders = made
            else:
                place = Path(scratch) / f"{row.other}-{row.scale}"
                folders = models(merged, suite.base, [suite.expert(name) for name in order], row, place)
                if seed == 0:
                    check(suite, merge, row, order, folders[-1], Path(scratch))
            line = {"merge": merge.name, "other": row.other, "scale": row.scale, "seed": seed}
            results.add(line | score(suite, order, folders, merged) | measured)
            if folders is not made:
                shutil.rmtree(place)


def make(
    suite: Suite, merge: Merge, order: list[str], scratch: Path, steps: bool, alone: bool = False
) -> tuple[Path, Measured]:
    """A merge by dopkit: its folder, CPU seconds, and peak memory if it had a process `alone`."""
    recipe = {
        "base_model": str(suite.base.resolve()),
        "merge_method": merge.method,
        "models": [str(suite.expert(name).resolve()) for name in order],
        "parameters": merge.parameters,
        "heads": "per-task",
    }
    place = Path(tempfile.mkdtemp(dir=scratch))
    (place / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return place / "merged", suite.merger.merge(place / "recipe.yaml", place / "merged", steps, alone)


def score(suite: Suite, order: list[str], folders: list[Path], heads: Path) -> dict:
    """ACC and BWT of the models after every step."""
    last = len(order)
    targets = [
        Target(f"step {step}", "step", folder, heads, step, name, tuple(order) if step == last else (name,))
        for step, (folder, name) in enumerate(zip(folders, order, strict=True), start=1)
    ]
    found = evaluate(targets, suite.tasks)
    final = found["rows"][-1]["scores"]
    values = {"acc": acc(found["tasks"], found["rows"]), "bwt": bwt(found["tasks"], found["rows"])}
    return values | {"scores": {name: final[name]["value"] for name in suite.names}}


def check(suite: Suite, merge: Merge, row: Row, order: list[str], found: Path, scratch: Path) -> None:
    """What was put together is what dopkit makes, to float32 rounding."""
    settings = {"other": row.other, "scale": "norm" if row.scale == "norm" else None}
    parameters = merge.parameters | {key: value for key, value in settings.items() if value is not None}
    made, _ = make(suite, merge._replace(parameters=parameters), order, scratch, steps=False)
    one, other, base = (load(folder) for folder in (found, made, suite.base))
    for name, tensor in other.items():
        error, size = float((one[name] - tensor).norm()), float((tensor - base[name]).norm())
        assert error <= 1e-5 * size + 1e-7 * float(tensor.norm()), (merge.name, row, name, error, size)


def load(folder: Path) -> Weights:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


if __name__ == "__main__":
    main()
