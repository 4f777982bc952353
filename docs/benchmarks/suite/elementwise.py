"""Merges element by element: dopkit and mergekit beside the physical floor, in turns within one run.

Every round runs the floor, dopkit and mergekit one after the other, each in a process of its own, so that what else the
machine does falls on all alike; medians are compared. Each program also merges a model of the same tensors and next to
no bytes: what it takes to start, to plan and to verify. A cold round empties the page cache before each run, where the
system allows that (root, Linux).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure
import models

FLOOR, DOPKIT, MERGEKIT = "floor", "dopkit", "mergekit"
SMALL = "llama-start-up"
_DROP = Path("/proc/sys/vm/drop_caches")

# Both programs read the same file. Every parameter is written out: their defaults are not the same.
_ENTRY = {"linear": {"weight": 0.25}, "ties": {"weight": 1.0, "density": 0.5}}

Result = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """Where and how often: ``mergekit`` is the interpreter of its environment, None to leave it out."""

    folder: Path
    rounds: int
    mergekit: str | None
    cold: bool = False


def recipe(method: str) -> dict[str, Any]:
    entries = [{"model": f"./{name}", "parameters": _ENTRY[method]} for name in models.EXPERTS]
    base = {"base_model": "./base"} if method == "ties" else {}
    return {"merge_method": method, **base, "models": entries, "dtype": "bfloat16"}


def compare(method: str, model: str, setting: Setting, say: Callable[[str], None] = print) -> Result:
    """One line of the table: every run of every program, and the medians' ratios."""
    place = models.make(setting.folder / "models", model)
    small = models.make(setting.folder / "models", SMALL)
    for folder in (place, small):
        (folder / f"{method}.yaml").write_text(json.dumps(recipe(method)))  # JSON is YAML
    programs = [FLOOR, DOPKIT, *([MERGEKIT] if setting.mergekit else [])]
    first = _first_start_up(method, place, small, setting)
    runs: dict[str, list[Result]] = {program: [] for program in programs}
    starts: dict[str, list[Result]] = {program: [] for program in programs[1:]}
    for number in range(setting.rounds):
        for program in programs:
            runs[program].append(_run(program, method, place, setting))
            say(f"  round {number + 1} {program}: {runs[program][-1]['wall_seconds']:.2f} s")
        for program in programs[1:]:
            starts[program].append(_run(program, method, small, setting))
    result: Result = {"method": method, "model": model, "experts": len(models.EXPERTS), "cold": setting.cold}
    result |= {"parameters": json.loads((place / models.DONE).read_text())["parameters"]}
    result |= {"first_start_up": first}
    result |= {"runs": runs, "start_up": starts, "medians": _medians(runs), "start_up_medians": _medians(starts)}
    result["ratios"] = ratios(result)
    if setting.mergekit:
        result["agreement"] = agreement(_out(setting, DOPKIT, place), _out(setting, MERGEKIT, place))
    for program in programs:
        measure.clear(_out(setting, program, place))
    return result


def _first_start_up(method: str, place: Path, small: Path, setting: Setting) -> Result:
    """dopkit's start-up for models it has never seen; afterwards it has seen all that will be merged, and keeps what
    their class said of them."""
    shutil.rmtree(measure.kept_answers(setting.folder), ignore_errors=True)
    first = _run(DOPKIT, method, small, setting)
    _run(DOPKIT, method, place, setting)
    return first


def ratios(result: Mapping[str, Any]) -> dict[str, float]:
    """What is compared: whole commands, and what is beyond the start-up, with the floor and with each other."""
    wall = {program: values["wall_seconds"] for program, values in result["medians"].items()}
    start = {program: values["wall_seconds"] for program, values in result["start_up_medians"].items()}
    found = {}
    for program in start:
        found[f"{program}_to_floor"] = wall[program] / wall[FLOOR]
        found[f"{program}_beyond_start_up_to_floor"] = max(0.0, wall[program] - start[program]) / wall[FLOOR]
    if MERGEKIT in wall:
        found["mergekit_to_dopkit"] = wall[MERGEKIT] / wall[DOPKIT]
    return {name: round(value, 3) for name, value in found.items()}


def agreement(ours: Path, theirs: Path) -> dict[str, Any]:
    """How far two merged folders are from each other: the share of equal values, and the largest difference."""
    import torch
    from safetensors import safe_open

    equal = total = 0
    largest = 0.0
    places = {key: path for path in models.weight_files(theirs) for key in _keys(path)}
    for path in models.weight_files(ours):
        with safe_open(path, "pt") as one:
            for key in one.keys():  # noqa: SIM118 - not a mapping
                with safe_open(places[key], "pt") as other:
                    a, b = one.get_tensor(key), other.get_tensor(key)
                equal += int(torch.count_nonzero(a == b))
                total += a.numel()
                largest = max(largest, float((a.float() - b.float()).abs().max()))
    return {"equal_share": equal / total, "largest_difference": largest}


def _keys(path: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(path, "pt") as opened:
        return list(opened.keys())


def _medians(runs: Mapping[str, list[Result]]) -> dict[str, Result]:
    return {
        program: {key: measure.median([one[key] for one in found]) for key in found[0]}
        for program, found in runs.items()
        if found
    }


def _run(program: str, method: str, place: Path, setting: Setting) -> Result:
    out = _out(setting, program, place)
    measure.clear(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    if setting.cold:
        os.sync()
        _DROP.write_text("3")
    command = _command(program, method, place, out, setting)
    return measure.run(command, setting.folder / f"{program}.log", measure.environment(setting.folder)).to_data()


def can_be_cold() -> bool:
    return os.access(_DROP, os.W_OK)


def _command(program: str, method: str, place: Path, out: Path, setting: Setting) -> list[str]:
    written = str(place / f"{method}.yaml")
    if program == DOPKIT:
        return [sys.executable, "-m", "dopkit", "run", "--quiet", written, "-o", str(out)]
    if program == MERGEKIT:
        assert setting.mergekit is not None
        # Its paths are relative to where it runs; a card would ask the Hub about them.
        code = "import os, sys; os.chdir(sys.argv.pop(1)); from mergekit.scripts.run_yaml import main; main()"
        return [setting.mergekit, "-c", code, str(place), written, str(out), "--no-write-model-card", "--quiet"]
    read = models.MODELS if method == "ties" else models.EXPERTS
    inputs = [path for model in read for path in models.weight_files(place / model)]
    size = models.weight_bytes(place / models.EXPERTS[0])
    return [sys.executable, str(Path(__file__).with_name("floor.py")), str(out), str(size), *map(str, inputs)]


def _out(setting: Setting, program: str, place: Path) -> Path:
    return setting.folder / "out" / f"{program}-{place.name}"
