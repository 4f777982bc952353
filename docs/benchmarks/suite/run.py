"""The benchmark suite: dopkit beside its peers and beside the physical floor, every comparison within one run.

    python docs/benchmarks/suite/run.py [--quick] [--only NAME ...] [--folder DIR] [--again]

Models, environments of the peers (installed from PyPI) and results lie in --folder, which needs some 25 GB and a disk
like the one that merges are to be fast on. Lines that are in its results.json are not measured again: a run that was
stopped goes on. Wants a quiet machine; the load is in the results. Without --quick some hours, most of them DOP's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import dop  # noqa: E402
import elementwise  # noqa: E402
import environments  # noqa: E402
import machine  # noqa: E402
import models  # noqa: E402
import table  # noqa: E402

SIZES = ("llama-340m", "llama-1.1b")
QUICK_SIZES = ("llama-tiny",)
NONE = "none"  # instead of an interpreter: leave this peer out


def lines(quick: bool) -> dict[str, tuple[str, str, bool]]:
    """The lines by name: method, model, and whether the page cache is emptied."""
    colds = (False, True) if elementwise.can_be_cold() and not quick else (False,)
    found = {
        f"{method}-{size.removeprefix('llama-')}{'-cold' if cold else ''}": (method, size, cold)
        for size in (QUICK_SIZES if quick else SIZES)
        for method in ("linear", "ties")
        for cold in colds
    }
    vision = "vit-tiny" if quick else "vit-b-32"
    return found | {f"dop-{vision}": ("dop", vision, False)}


def parsed(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny models and few steps: does it all work?")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these lines (or those whose names begin like this)")
    parser.add_argument("--again", action="store_true", help="measure lines again that are in the results")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the elementwise lines (default: 3)")
    parser.add_argument("--every-matrix", action="store_true", help="FusionBench merges every matrix: hours")
    parser.add_argument("--device", metavar="NAME", help="what DOP and FusionBench compute on: cpu, cuda")
    parser.add_argument("--folder", type=Path, default=Path("benchmark-suite"), help="(default: ./benchmark-suite)")
    parser.add_argument("--mergekit", metavar="PYTHON", help=f"an interpreter that has it, or `{NONE}`")
    parser.add_argument("--fusionbench", metavar="PYTHON", help=f"an interpreter that has it, or `{NONE}`")
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> None:
    arguments = parsed(given)
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    results = _opened(folder, arguments)
    for name, (method, model, cold) in lines(arguments.quick).items():
        if arguments.only and not any(name.startswith(one) for one in arguments.only):
            continue
        if name in results["lines"] and not arguments.again:
            print(f"{name}: measured already")
            continue
        print(f"{name}:", flush=True)
        before = machine.load()
        _make_models(folder, model)
        measured = _measure(method, model, cold, folder, arguments)
        results["lines"][name] = {**measured, "load_before": before}
        results["versions"] = {**results["versions"], **_versions(method, folder, arguments)}
        _write(folder, results)
    print((folder / "results.md").read_text() if results["lines"] else "nothing was measured")


def _measure(method: str, model: str, cold: bool, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    say: Callable[[str], None] = lambda text: print(text, flush=True)  # noqa: E731
    if method == "dop":
        peer = _peer("fusionbench", folder, arguments)
        steps = 5 if arguments.quick else dop.STEPS
        setting = dop.Setting(folder, peer, steps=steps, every=arguments.every_matrix, device=arguments.device)
        return dop.compare(model, setting, say)
    peer = _peer("mergekit", folder, arguments)
    return elementwise.compare(method, model, elementwise.Setting(folder, arguments.rounds, peer, cold), say)


def _peer(name: str, folder: Path, arguments: argparse.Namespace) -> str | None:
    given = getattr(arguments, name)
    return None if given == NONE else environments.python_of(name, folder / "environments", given)


def _make_models(folder: Path, model: str) -> None:
    """In processes of their own: what measures stays small, so that its memory is in nobody's numbers."""
    for name in (model,) if model in models.VISION else (model, elementwise.SMALL):
        script = str(Path(models.__file__))
        subprocess.run([sys.executable, script, str(folder / "models"), name], check=True)


def _versions(method: str, folder: Path, arguments: argparse.Namespace) -> dict[str, dict[str, str]]:
    name, package = ("fusionbench", "fusion_bench") if method == "dop" else ("mergekit", "mergekit")
    found = {"dopkit": environments.versions(sys.executable, ("dopkit", "torch", "transformers", "numpy"))}
    if peer := _peer(name, folder, arguments):
        found[name] = environments.versions(peer, (package, "torch", "transformers", "numpy"))
    return found


def _opened(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The results so far, which must be this machine's: a ratio of two machines says nothing."""
    here = machine.describe(folder)
    path = folder / "results.json"
    if not path.exists():
        quick = " --quick" if arguments.quick else ""
        return {"machine": here, "versions": {}, "command": f"python docs/benchmarks/suite/run.py{quick}", "lines": {}}
    results: dict[str, Any] = json.loads(path.read_text())
    if results["machine"] != here:
        raise SystemExit(f"{path} was measured on another machine: use another --folder, or remove it")
    return results


def _write(folder: Path, results: dict[str, Any]) -> None:
    beside = folder / "results.json.new"
    beside.write_text(json.dumps(results, indent=1) + "\n")
    beside.rename(folder / "results.json")
    (folder / "results.md").write_text(table.render(results))


if __name__ == "__main__":
    main()
