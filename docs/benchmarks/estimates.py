"""What the plan says of memory against what the kernel counts, for every kind of rule.

    python docs/benchmarks/estimates.py [--side 1536] [--json results.json] [--folder DIR] [--only ties,tsv]

Models of three matrices (side x 3/2 side) in float32, merged by one method each in a process of its own: once with all
memory, and once with `--max-memory` at the least that the plan names and the kernel's RLIMIT_DATA at the same. Numbers
are beside the program itself, which is what the process held when it had planned.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

# method, parameters, number of experts
CASES: tuple[tuple[str, dict[str, Any], int], ...] = (
    ("average", {}, 3),
    ("ties", {}, 3),
    ("dare_ties", {"density": 0.5}, 3),
    ("breadcrumbs", {}, 3),
    ("karcher", {}, 3),
    ("model_stock", {}, 3),
    ("sce", {}, 3),
    ("ramplus_tl", {}, 3),
    ("dop", {}, 3),
    ("dop", {"solver": "adam", "num_steps": 3}, 3),
    ("dop", {"history": "all"}, 3),
    ("wudi", {}, 3),
    ("opcm", {}, 3),
    ("nullspace", {}, 3),
    ("tsv", {}, 3),
    ("iso_c", {}, 3),
    ("ace", {}, 3),
)


def make_models(folder: Path, side: int) -> None:
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    shape = (side, side * 3 // 2)
    base = {f"layers.{n}.weight": 0.02 * torch.randn(shape, generator=generator) for n in range(3)}
    for model in ("base", "e0", "e1", "e2"):
        change = 0.0 if model == "base" else 4e-4
        tensors = {name: one + change * torch.randn(shape, generator=generator) for name, one in base.items()}
        (folder / model).mkdir(parents=True)
        save_file(tensors, folder / model / "model.safetensors")


def kernel(field: str) -> int:
    """A line of the kernel's account of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def merge(folder: Path, case: tuple[str, dict[str, Any], int], most: int | None) -> dict[str, int]:
    """One merge in this process, within ``most`` bytes; what would do, if that is too little."""
    import yaml

    import dopkit
    from dopkit.errors import PlanError
    from dopkit.measure import peak_resident_bytes, resident_bytes
    from dopkit.units import parse_size

    method, parameters, experts = case
    recipe = {"base_model": "./base", "merge_method": method, "models": [f"./e{n}" for n in range(experts)]}
    loaded = dopkit.parse_recipe(yaml.safe_dump(recipe | {"parameters": parameters}), folder=folder)
    options = dopkit.Options(max_memory=most, overwrite=True)
    try:
        plan = dopkit.plan(loaded, folder / "out", options)
    except PlanError as error:
        found = re.search(r"--max-memory (\S+)`", str(error))
        assert found, error
        return {"least": parse_size(found[1])}
    program = resident_bytes()
    if most is not None:
        threading.stack_size(1 << 20)  # RLIMIT_DATA counts all of a stack, and the kernel what is used of it
        room = kernel("VmData") + most - program
        resource.setrlimit(resource.RLIMIT_DATA, (room, room))
    dopkit.run(loaded, folder / "out", options)
    return {"program": program, "planned": plan.memory_bytes - program, "peak": peak_resident_bytes() - program}


def measured(folder: Path, index: int, most: int | None = None) -> dict[str, int]:
    """One merge in a process of its own."""
    given = [] if most is None else ["--most", str(most)]
    command = [sys.executable, __file__, "--one", str(index), "--folder", str(folder), *given]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    told: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return told


def show(cells: tuple[Any, ...]) -> None:
    print("{:<34}{:>10}{:>10}{:>8}{:>12}{:>10}".format(*cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=1536, help="rows of a matrix; it has half as many columns more")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--folder", type=Path, help="where to make the models (default: a temporary folder)")
    parser.add_argument("--only", help="methods, separated by commas")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)  # run one case in this process
    parser.add_argument("--most", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(merge(arguments.folder, CASES[arguments.one], arguments.most)))
        return
    if arguments.folder:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    wanted = arguments.only.split(",") if arguments.only else None
    results = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary)
        make_models(folder, arguments.side)
        print(f"a matrix in float32: {arguments.side**2 * 6 / 1e6:.0f} MB; all numbers in MB beside the program")
        show(("", "planned", "peak", "ratio", "the least", "its peak"))
        for index, case in enumerate(CASES):
            if wanted and case[0] not in wanted:
                continue
            free = measured(folder, index)
            enough = measured(folder, index, 1_000_000)["least"]
            small = measured(folder, index, enough)
            ratio = free["planned"] / free["peak"]
            parameters = ", ".join(f"{name} {value}" for name, value in case[1].items())
            results.append({"method": case[0], "parameters": case[1], "free": free, "least": enough, "small": small})
            figures = [free["planned"], free["peak"], enough - small["program"], small["peak"]]
            planned, peak, room, its_peak = (f"{one / 1e6:.0f}" for one in figures)
            show((f"{case[0]} {parameters}"[:33], planned, peak, f"{ratio:.2f}", room, its_peak))
    if arguments.json:
        arguments.json.write_text(json.dumps({"side": arguments.side, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
