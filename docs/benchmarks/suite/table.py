"""The results as tables for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import machine


def render(results: Mapping[str, Any]) -> str:
    """Markdown of everything in ``results.json``."""
    lines = [
        "# Results of the suite",
        "",
        f"Made by `{results['command']}`.",
        "",
        f"Machine: {machine.in_words(results['machine'])}.",
        f"Versions: {_versions(results['versions'])}.",
        "",
        "Ratios are within one run: the programs took turns. Times are medians of whole commands, in seconds.",
    ]
    found = results["lines"]
    elementwise = [line for line in found.values() if line["method"] != "dop"]
    if elementwise:
        lines += ["", "## Element by element", "", *_elementwise(elementwise)]
    for name, line in found.items():
        if line["method"] == "dop":
            lines += ["", f"## DOP, one step: {name}", "", *_dop(line)]
    return "\n".join(lines) + "\n"


def _elementwise(found: list[Mapping[str, Any]]) -> list[str]:
    lines = [
        "| merge | cache | program | wall | CPU | start-up | peak memory | read / written on disk | to floor | beyond "
        "start-up, to floor |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for line in found:
        what = f"`{line['method']}`, {line['experts']} experts of {_millions(line)}"
        for program, values in line["medians"].items():
            start = line["start_up_medians"].get(program)
            ratios = [line["ratios"].get(f"{program}{part}_to_floor") for part in ("", "_beyond_start_up")]
            lines.append(
                f"| {what} | {'cold' if line['cold'] else 'warm'} | {program} | {values['wall_seconds']:.2f} "
                f"| {values['cpu_seconds']:.2f} | {'' if start is None else format(start['wall_seconds'], '.2f')} "
                f"| {values['peak_bytes'] / 1e6:,.0f} MB "
                f"| {values['read_bytes'] / 1e6:,.0f} / {values['written_bytes'] / 1e6:,.0f} MB "
                f"| {' | '.join('' if ratio is None else format(ratio, '.2f') for ratio in ratios)} |"
            )
    lines += ["", "Start-up is the same command on as many tensors of next to no bytes."]
    if firsts := [line["first_start_up"]["wall_seconds"] for line in found if "first_start_up" in line]:
        lines[-1] += (
            f" dopkit has seen models of this class and these shapes before; the first time it takes "
            f"{sorted(firsts)[len(firsts) // 2]:.2f}."
        )
    told = [line for line in found if "agreement" in line]
    if told:
        lines += ["", "Against mergekit's result:", ""]
    for line in told:
        one = line["agreement"]
        lines.append(
            f"- `{line['method']}`, {_millions(line)}, {'cold' if line['cold'] else 'warm'}: "
            f"{line['ratios']['mergekit_to_dopkit']:.2f} times as fast; {one['equal_share']:.3%} of the values equal, "
            f"largest difference {one['largest_difference']:.1e}"
        )
    return lines


def _dop(line: Mapping[str, Any]) -> list[str]:
    number = ", ".join(f"{count} of {shape}" for shape, count in line["matrices"].items())
    lines = [
        f"Matrices: {number}. Adam takes {line['steps']} steps. Computed on: {line.get('device') or 'the default'}.",
        "",
        "| program | wall | CPU | peak memory | faster by |",
    ]
    lines.append("|---|---|---|---|---|")
    theirs = line.get("fusionbench")
    if theirs is not None:
        word = " (extrapolated from one matrix of each shape)" if theirs["extrapolated"] else ""
        lines.append(
            f"| FusionBench{word} | {theirs['wall_seconds']:,.0f} | {theirs['cpu_seconds']:,.0f} "
            f"| {theirs['peak_bytes'] / 1e6:,.0f} MB | |"
        )
    for solver, values in line["medians"].items():
        ratio = line.get("ratios", {}).get(f"fusionbench_to_{solver}")
        lines.append(
            f"| dopkit `{solver}`, whole command | {values['wall_seconds']:,.0f} | {values['cpu_seconds']:,.0f} "
            f"| {values['peak_bytes'] / 1e6:,.0f} MB | {'' if ratio is None else format(ratio, '.1f')} |"
        )
    if "objective" in line:
        lines += ["", "Objective at the result, as a share of that at the mean of the two models:", ""]
        programs = list(next(iter(line["objective"].values())))
        lines += [f"| matrix | {' | '.join(programs)} |", "|---|" + "---|" * len(programs)]
        for name, values in line["objective"].items():
            lines.append(f"| {name} | {' | '.join(format(values[program], '.6f') for program in programs)} |")
    return lines


def _millions(line: Mapping[str, Any]) -> str:
    return f"{line['parameters'] / 1e6:,.0f} M"


def _versions(versions: Mapping[str, Mapping[str, str]]) -> str:
    return "; ".join(
        f"{who}: " + ", ".join(f"{name} {number}" for name, number in found.items()) for who, found in versions.items()
    )
