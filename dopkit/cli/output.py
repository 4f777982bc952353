"""What every verb prints the same way: errors, JSON, tables; and the options that several verbs share."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from dopkit.errors import DopkitError, OutputError, Problem
from dopkit.limits import MemoryLimit, parse_limit
from dopkit.refs import ModelRef
from dopkit.units import parse_size

Command = TypeVar("Command", bound=Callable[..., Any])


class Size(click.ParamType[int]):
    """A size option like ``4GB``."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Memory(click.ParamType[MemoryLimit]):
    """``8GB``, or ``cpu=8GB,cuda=16GB``."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> MemoryLimit:
        if isinstance(value, MemoryLimit):
            return value
        try:
            return parse_limit(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Device(click.ParamType[str]):
    """``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``."""

    name = "auto|cpu|cuda[:N]|mps"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        kind, colon, number = str(value).partition(":")
        if kind not in ("auto", "cpu", "cuda", "mps") or (colon and (kind != "cuda" or not number.isdigit())):
            self.fail(f"{value!r} is not one of auto, cpu, cuda, cuda:N, mps", param, ctx)
        return str(value)


_OVERWRITE = "Replace an output folder that dopkit made (and, when pushing, a repository that it did not make)."


def memory_option(command: Command) -> Command:
    """``--max-memory``."""
    told = (
        "Most memory to use on this machine, the program included, as 4GB; with a device's as cpu=4GB,cuda=16GB "
        "(default: what is free)."
    )
    return click.option("--max-memory", type=Memory(), help=told)(command)


def merge_options(command: Command) -> Command:
    """The options of ``run`` and ``plan`` that decide how, not what, to merge."""
    for option in reversed(
        (
            click.option(
                "-o",
                "--out",
                metavar="FOLDER",
                help="Output folder (default: named after the recipe; add: MERGED itself).",
            ),
            click.option("--device", type=Device(), default="auto", show_default=True, help="Where to compute."),
            memory_option,
            click.option(
                "--max-shard-size", type=Size(), default="5GB", show_default=True, help="Largest weight file to write."
            ),
            click.option("--overwrite", is_flag=True, help=_OVERWRITE),
            click.option("--save-steps", is_flag=True, help="Keep the model after every step, in OUT/steps."),
            click.option(
                "--keep-state", is_flag=True, help="Keep what makes a later `dopkit add` exact, in OUT/state."
            ),
            click.option("--tasks", metavar="FILE", help="Score on these tasks after every step, and write a report."),
            click.option("--stream", is_flag=True, help="Read Hub models while merging, without storing them."),
        )
    ):
        command = option(command)
    return command


def keep_stages_option(command: Command) -> Command:
    """``--keep-stages``, of ``run`` and ``plan``."""
    told = "Keep the models that the recipe merges on the way, in OUT/stages."
    return click.option("--keep-stages", is_flag=True, help=told)(command)


def cluster_options(command: Command) -> Command:
    """``--executor`` and ``--ray-address``, of ``run``; see ``read_cluster``."""
    for option in reversed(
        (
            click.option(
                "--executor",
                type=click.Choice(["local", "ray"]),
                default="local",
                show_default=True,
                help="Who merges: this process, or workers on a Ray cluster.",
            ),
            click.option(
                "--ray-address",
                metavar="HOST:PORT",
                help="Head of the cluster (default: RAY_ADDRESS, else this machine's, else a new one).",
            ),
        )
    ):
        command = option(command)
    return command


def read_cluster(how: dict[str, Any]) -> None:
    """Put the options of a cluster together, in place."""
    executor, address = how.pop("executor"), how.pop("ray_address")
    how["cluster"] = None
    if executor == "ray":
        from dopkit.cluster import Ray

        how["cluster"] = Ray(address)
    elif address is not None:
        raise click.UsageError("--ray-address needs --executor ray")


def cut_as_published(origin: ModelRef | None, how: dict[str, Any]) -> None:
    """A published merge is made again in files of the size it has, unless another size is asked for."""
    context = click.get_current_context()
    if origin is None or context.get_parameter_source("max_shard_size") is not ParameterSource.DEFAULT:
        return
    from dopkit import hub_recipes

    how["max_shard_size"] = hub_recipes.max_shard_size(origin) or how["max_shard_size"]


def json_option(command: Command) -> Command:
    """``--json``: the answer, or the error, as data on stdout."""

    def remember(context: click.Context, _: click.Parameter, wanted: bool) -> bool:
        context.find_root().obj = "json" if wanted else None
        return wanted

    return click.option("--json", "as_json", is_flag=True, callback=remember, help="Print JSON.")(command)


def watching_options(command: Command) -> Command:
    """What a long run prints."""
    for option in reversed(
        (
            json_option,
            click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors."),
            click.option("-v", "--verbose", is_flag=True, help="Print a line for every tensor."),
        )
    ):
        command = option(command)
    return command


def show_json(data: Any) -> None:
    click.echo(json.dumps(data, indent=2, ensure_ascii=False))


def show_error(error: DopkitError) -> None:
    """The message on stderr; with ``--json`` the same as data on stdout."""
    context = click.get_current_context(silent=True)
    if context is not None and context.obj == "json":
        show_json({"error": error.headline, "problems": [asdict(problem) for problem in error.problems]})
    else:
        click.echo(printable(str(error)), err=True)


def printable(text: str) -> str:
    """Text of others without characters that would steer a terminal."""
    return "".join(character if character.isprintable() or character == "\n" else "?" for character in text)


def table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Plain columns two spaces apart; ``right`` are the columns set to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def write_new(file: Path, text: str, remedy: str) -> None:
    """Write a text file that is not there yet. Raises OutputError, with ``remedy`` when it is."""
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise OutputError(f"{file} exists already", [Problem("", remedy)]) from None
    except OSError as error:
        raise OutputError(f"cannot write {file}: {error.strerror}") from error
