"""How far should a merged task vector go? ACC over the scale, and what rules from the weights alone would have picked.

    python docs/benchmarks/continual/scales.py SUITE               # lines into SUITE-scales.jsonl; resumable
    python docs/benchmarks/continual/scales.py --table A-scales.jsonl B-scales.jsonl

Of a few merges the final model is scored at every scale of a grid, from 0.5 to the number of tasks T, and at the
scale of every rule (scale_rules.py). A merge's own result is scale 1; OPCM's has the `norm` rule's scale already.
The best point of the grid is picked with the test samples: no rule can know it, and it flatters by some tenths.
"""

import argparse
import json
import shutil
import statistics
import tempfile
from pathlib import Path

import torch
from harness import Suite, make
from merger import Merger
from recombine import backbone, write
from rows import MERGES, Merge
from safetensors.torch import load_file
from scale_rules import Scales, scales
from tables import put

from dopkit.evaluation.running import evaluate
from dopkit.evaluation.targets import Target

STUDIED = ("average", "opcm", "wudi", "dop exact, last", "dop exact, all")
GRID = tuple(0.5 * 2 ** (step / 2) for step in range(12))
Line = dict


def main() -> None:
    parser = argparse.ArgumentParser(description="Score merges at many scales, and at those that rules pick.")
    parser.add_argument("suite", type=Path, nargs="?")
    parser.add_argument("--orders", type=int, default=2, help="orders of the merges that have one, of seeds 0 to N-1")
    parser.add_argument("--limit", type=int, help="held-out samples a task, at most")
    parser.add_argument("--results", type=Path, help="where the lines go (default: SUITE-scales.jsonl)")
    parser.add_argument("--table", type=Path, nargs="+", help="print the tables of these lines instead")
    parser.add_argument(
        "--into", type=Path, help="the tables go between `<!-- scales -->` and `<!-- /scales -->` there"
    )
    options = parser.parse_args()
    if options.table:
        suites = {file.stem.removesuffix("-scales"): _read(file) for file in options.table}
        text = "\n\n".join(
            [curves(suites), f"Points against the best of the row: {' / '.join(suites)}.", verdict(suites)]
        )
        if options.into is None:
            print(text)
        else:
            options.into.write_text(put(options.into.read_text(encoding="utf-8"), "scales", text), encoding="utf-8")
        return
    if options.suite is None:
        parser.error("a suite, or --table")
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("medium")
    suite = Suite(options.suite, options.limit, Merger(in_process=False))
    file = options.results or Path(f"{options.suite.name}-scales.jsonl")
    for seed in range(options.orders):
        for merge in MERGES:
            if merge.name in STUDIED and (merge.ordered or seed == 0):
                study(suite, merge, seed, file)


def study(suite: Suite, merge: Merge, seed: int, file: Path) -> None:
    """One merge at all scales that are not there yet."""
    there = {line["at"] for line in _read(file) if (line["merge"], line["seed"]) == (merge.name, seed)}
    grid = [scale for scale in GRID if scale < len(suite.names)] + [float(len(suite.names))]
    if "done" in there:
        return
    with tempfile.TemporaryDirectory() as scratch:
        order = suite.order(seed)
        merged, _ = make(suite, merge, order, Path(scratch), steps=False)
        rules = json.loads((merged / "dopkit_receipt.json").read_text())["tensors"]
        base, *experts = (backbone(folder, rules) for folder in (suite.base, *map(suite.expert, order)))
        weights = load_file(merged / "model.safetensors")
        moved = {name: weights[name] - base[name] for name in weights}
        picked = scales(moved, [{name: expert[name] - base[name] for name in weights} for expert in experts])
        points = {f"{scale:.2f}": dict.fromkeys(moved, scale) for scale in grid} | picked
        for at, chosen in points.items():
            if at in there:
                continue
            model = {name: base[name] + chosen[name] * tensor for name, tensor in moved.items()}
            folder = write(Path(scratch) / "scaled", merged, model)
            _add(file, merge, seed, at, {"scale": _middle(chosen), "acc": score(suite, folder, merged)})
            shutil.rmtree(folder)
        _add(file, merge, seed, "done", {})


def score(suite: Suite, folder: Path, heads: Path) -> float:
    targets = [Target("step 1", "step", folder, heads, 1, None, tuple(suite.names))]
    found = evaluate(targets, suite.tasks)["rows"][0]["scores"]
    return statistics.fmean(score["value"] for score in found.values())


def curves(suites: dict[str, list[Line]]) -> str:
    """ACC in percent over the grid, a row for each suite and merge; the best point in bold."""
    grid = sorted({line["at"] for lines in suites.values() for line in lines if _on_grid(line)}, key=float)
    rows = ["| suite | merge | " + " | ".join(grid) + " |", "|---|---|" + "---|" * len(grid)]
    for suite, lines in suites.items():
        for merge in STUDIED:
            found = {at: _mean(lines, merge, at) for at in grid}
            top = max((value for value in found.values() if value is not None), default=None)
            cells = ["" if value is None else _bold(f"{100 * value:.1f}", value == top) for value in found.values()]
            rows.append(f"| {suite} | {merge} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def verdict(suites: dict[str, list[Line]]) -> str:
    """For each rule and merge the points gained on the best of the grid, suite by suite; bold if never over 1 lost."""
    rules = dict.fromkeys(at for lines in suites.values() for at in _rules(lines))
    rows = ["| rule | " + " | ".join(STUDIED) + " |", "|---|" + "---|" * len(STUDIED)]
    for rule in rules:
        cells = []
        for merge in STUDIED:
            lost = [_lost(lines, merge, rule) for lines in suites.values()]
            text = " / ".join("?" if value is None else f"{-100 * value:+.1f}" for value in lost)
            cells.append(_bold(text, all(value is not None and value <= 0.01 for value in lost)))
        rows.append(f"| {rule} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _lost(lines: list[Line], merge: str, rule: str) -> float | None:
    grid = [_mean(lines, merge, at) for at in {line["at"] for line in lines if _on_grid(line)}]
    found, known = _mean(lines, merge, rule), [value for value in grid if value is not None]
    return None if found is None or not known else max(known) - found


def _mean(lines: list[Line], merge: str, at: str) -> float | None:
    """ACC over the orders."""
    found = [line["acc"] for line in lines if (line["merge"], line["at"]) == (merge, at)]
    return statistics.fmean(found) if found else None


def _rules(lines: list[Line]) -> list[str]:
    return [line["at"] for line in lines if line["at"] != "done" and not _on_grid(line)]


def _on_grid(line: Line) -> bool:
    return "." in line["at"]


def _middle(chosen: Scales) -> float:
    """The median over the tensors: the scale itself where all have the same."""
    return statistics.median(chosen.values())


def _bold(text: str, bold: bool) -> str:
    return f"**{text}**" if bold else text


def _read(file: Path) -> list[Line]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _add(file: Path, merge: Merge, seed: int, at: str, values: dict[str, float]) -> None:
    line = {"merge": merge.name, "seed": seed, "at": at} | values
    with file.open("a") as stream:
        stream.write(json.dumps(line) + "\n")
    print(line, flush=True)


if __name__ == "__main__":
    main()
