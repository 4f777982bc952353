"""One continual step of DOP on a model of ViT-B/32's size: dopkit, whole, beside FusionBench's code.

FusionBench would take hours for all matrices, so by default it merges one of each shape, and what the whole step would
take is that times their number: an extrapolation, and called one in every place. ``every`` merges them all. dopkit runs
the whole command, reading, writing and verification included. Both get the same matrices: the base, what is merged so
far (the first expert) and the incoming model (the second).

On the matrices that FusionBench merged the objective is evaluated for all three results alike, in float64: with the
triplets that the published rule keeps, and alpha fixed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure
import models

ALPHA, EPSILON, STEPS = 0.8, 0.99999, 200
SOLVERS = ("exact", "adam")
_INPUTS = {"base": "base", "merged": "e0", "incoming": "e1"}

Result = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """``fusionbench`` is the interpreter of its environment, None to leave it out; ``steps`` are Adam's.

    ``device`` is what both compute on, as `cuda` or `cuda:1`; None leaves it to dopkit, and FusionBench on the CPU.
    """

    folder: Path
    fusionbench: str | None
    rounds: int = 1
    steps: int = STEPS
    every: bool = False
    device: str | None = None


def compare(model: str, setting: Setting, say: Callable[[str], None] = print) -> Result:
    """The line of the table."""
    place = models.make(setting.folder / "models", model)
    kinds = matrices(place)
    result: Result = {"method": "dop", "model": model, "steps": setting.steps, "device": setting.device}
    result["matrices"] = {_words(shape): len(names) for shape, names in kinds.items()}
    runs: dict[str, list[Result]] = {solver: [] for solver in SOLVERS}
    theirs: Result | None = None
    _dopkit(place, "average", setting)  # as in the lines element by element, dopkit has seen models of this kind before
    for number in range(setting.rounds):
        for solver in SOLVERS:
            runs[solver].append(_dopkit(place, solver, setting))
            say(f"  round {number + 1} dopkit {solver}: {runs[solver][-1]['wall_seconds']:.1f} s")
    if setting.fusionbench:
        theirs = _fusionbench(place, kinds, setting)
        word = "extrapolated" if theirs["extrapolated"] else "whole"
        say(f"  fusionbench, {word}: {theirs['wall_seconds']:.1f} s")
    result["runs"] = runs
    result["medians"] = {
        solver: {key: measure.median([one[key] for one in found]) for key in found[0]} for solver, found in runs.items()
    }
    if theirs is not None:
        result["fusionbench"] = theirs
        walls = {solver: result["medians"][solver]["wall_seconds"] for solver in SOLVERS}
        result["ratios"] = {
            f"fusionbench_to_{solver}": round(theirs["wall_seconds"] / wall, 2) for solver, wall in walls.items()
        }
        result["objective"] = objectives(place, setting)
    for solver in SOLVERS:
        measure.clear(_out(setting, solver))
    return result


def matrices(place: Path) -> dict[tuple[int, ...], list[str]]:
    """The weights of linear layers by shape, in the model's order; those that FusionBench optimises."""
    found: dict[tuple[int, ...], list[str]] = {}
    for path in models.weight_files(place / "base"):
        for name, shape in _shapes(path).items():
            if len(shape) == 2 and ".layers." in name:
                found.setdefault(shape, []).append(name)
    return found


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Out of the header of a safetensors file: the harness stays small, and loads no torch for it."""
    with path.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}


def _words(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _recipe(solver: str, steps: int) -> dict[str, Any]:
    """Of a step of DOP, or of the mean."""
    recipe = {"merge_method": "average", "base_model": "./base", "models": ["./e0", "./e1"]}
    if solver not in SOLVERS:
        return recipe
    # rank_rule and other as in the reference code, so that both do the same.
    parameters = {"solver": solver, "alpha": ALPHA, "svd_epsilon": EPSILON, "rank_rule": "below", "other": "half"}
    if solver == "adam":
        parameters |= {"num_steps": steps, "ema_beta": 0.999}
    return {**recipe, "merge_method": "dop", "parameters": parameters}


def _dopkit(place: Path, solver: str, setting: Setting) -> Result:
    written = place / f"dop-{solver}.yaml"
    written.write_text(json.dumps(_recipe(solver, setting.steps)))
    out = _out(setting, solver)
    measure.clear(out)
    command = [sys.executable, "-m", "dopkit", "run", "--quiet", str(written), "-o", str(out)]
    command += ["--device", setting.device] if setting.device else []
    environment, log = measure.environment(setting.folder), setting.folder / "dopkit.log"
    return measure.run(command, log, environment).to_data()


def _fusionbench(place: Path, kinds: dict[tuple[int, ...], list[str]], setting: Setting) -> Result:
    assert setting.fusionbench is not None
    chosen = {shape: names if setting.every else names[:1] for shape, names in kinds.items()}
    given, out = setting.folder / "matrices.safetensors", setting.folder / "fusionbench.safetensors"
    _gather(place, [name for names in chosen.values() for name in names], given)
    script = str(Path(__file__).with_name("fusionbench_step.py"))
    command = [setting.fusionbench, script, str(given), str(out), str(setting.steps), setting.device or "cpu"]
    measured = measure.run(command, setting.folder / "fusionbench.log")
    each = json.loads(Path(f"{out}.json").read_text())
    whole = dict.fromkeys(("wall_seconds", "cpu_seconds"), 0.0)
    for shape, names in chosen.items():
        for key in whole:
            whole[key] += sum(each[name][key] for name in names) / len(names) * len(kinds[shape])
    return {**whole, "extrapolated": not setting.every, "each": each, "peak_bytes": measured.peak_bytes}


def _gather(place: Path, names: list[str], file: Path) -> None:
    """The matrices in float32, under names that say which model they are of."""
    from safetensors.torch import save_file

    tensors = {
        f"{name}.{part}": tensor
        for part, model in _INPUTS.items()
        for name, tensor in _read(place / model, names).items()
    }
    save_file(tensors, file)


def _read(folder: Path, names: list[str]) -> dict[str, Any]:
    from safetensors import safe_open

    found = {}
    for path in models.weight_files(folder):
        with safe_open(path, "pt") as opened:
            found |= {name: opened.get_tensor(name).float() for name in names if name in set(opened.keys())}
    return found


def objectives(place: Path, setting: Setting) -> dict[str, dict[str, float]]:
    """By matrix: the objective at each result, divided by that at the mean of the two models."""
    from safetensors.torch import load_file

    theirs = load_file(setting.folder / "fusionbench.safetensors")
    names = list(theirs)
    inputs = {part: _read(place / model, names) for part, model in _INPUTS.items()}
    results = {"fusionbench": theirs, **{solver: _read(_out(setting, solver), names) for solver in SOLVERS}}
    found = {}
    for name in names:
        evaluate = _objective(*(inputs[part][name].double() for part in _INPUTS))
        mean = (inputs["merged"][name].double() + inputs["incoming"][name].double()) / 2
        start = evaluate(mean)
        found[name] = {who: evaluate(tensors[name].double()) / start for who, tensors in results.items()}
    return found


def _objective(base: Any, merged: Any, incoming: Any) -> Callable[[Any], float]:
    """alpha L_0 + (1 - alpha) L_1 of docs/dop.md, for float64 matrices."""
    import torch

    terms = []
    for weight, target in ((ALPHA, merged), (1 - ALPHA, incoming)):
        u, s, vh = torch.linalg.svd(target - base, full_matrices=False)
        rank = int(torch.searchsorted(s.cumsum(0) / s.sum(), EPSILON))
        terms.append((weight, target, u[:, :rank] * s[:rank], vh[:rank].mT * s[:rank]))

    def evaluate(point: Any) -> float:
        return sum(
            weight * float((left.mT @ (point - target)).square().sum() + ((point - target) @ right).square().sum())
            for weight, target, left, right in terms
        )

    return evaluate


def _out(setting: Setting, solver: str) -> Path:
    return setting.folder / "out" / f"dop-{solver}"
