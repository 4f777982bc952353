"""Mean and standard deviation of ACC and BWT over the orders: `python collect.py WORK/b32-8` prints a table.

Reads WORK/b32-8/METHOD/SEED/dopkit_evaluation.json, which dopkit wrote; computes no score itself.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FILE = "dopkit_evaluation.json"


def main() -> None:
    parser = argparse.ArgumentParser(description="Mean and standard deviation of ACC and BWT over the orders.")
    parser.add_argument("folders", type=Path, nargs="+", help="what make.py wrote into")
    for folder in parser.parse_args().folders:
        print(f"## {folder.name}\n\n{table(read(folder))}\n")


def read(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The evaluations of each method, a method being a folder of runs."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob(f"*/*/{FILE}")):
        found.setdefault(path.parent.parent.name, []).append(json.loads(path.read_text(encoding="utf-8")))
    return found


def table(methods: dict[str, list[dict[str, Any]]]) -> str:
    """In Markdown, in percent. Only runs that are scored to the end count."""
    rows = ["| method | orders | ACC | BWT |", "|---|---|---|---|"]
    unfinished = []
    for method, runs in methods.items():
        whole = [run for run in runs if run["acc"] is not None and run["bwt"] is not None]
        if len({tuple((task["name"], task["digest"]) for task in run["tasks"]) for run in whole}) > 1:
            raise SystemExit(f"{method}: its runs were not scored on the same tasks; score them again")
        acc, bwt = ([run[key] for run in whole] for key in ("acc", "bwt"))
        rows.append(f"| {method} | {len(whole)} | {spread(acc)} | {spread(bwt, '+')} |")
        if len(whole) < len(runs):
            unfinished.append(f"{method}: {len(runs) - len(whole)} not scored to the end, left out")
    return "\n".join([*rows, "", *unfinished] if unfinished else rows)


def spread(values: Sequence[float], sign: str = "") -> str:
    """Mean and standard deviation (of a sample: n - 1) in percent."""
    if not values:
        return "-"
    mean = f"{100 * statistics.fmean(values):{sign}.1f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * statistics.stdev(values):.1f}"


if __name__ == "__main__":
    main()
