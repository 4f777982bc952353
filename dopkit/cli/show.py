"""``dopkit show``: what a merged model carries with it, read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dopkit.cli.output import json_option, show_json, table
from dopkit.units import show_seconds, show_size


@click.command(short_help="Show recipe, commits and receipt of a merged model.")
@click.argument("folder", type=click.Path(path_type=Path))
@json_option
@click.option("-v", "--verbose", is_flag=True, help="List every tensor with its rule and time.")
def show(folder: Path, as_json: bool, verbose: bool) -> None:
    """Show the recipe, the pinned commits and the receipt of a merged model in FOLDER."""
    from dopkit import receipt

    done = receipt.read(folder)
    recipe = (folder / receipt.RECIPE_FILE).read_text(encoding="utf-8")
    if as_json:
        show_json({"recipe": recipe, "receipt": done})
        return
    click.echo(f"# {receipt.RECIPE_FILE}\n{recipe}")
    _sources(done)
    _run(done)
    click.echo(
        table([(shard["file"], show_size(shard["bytes"]), shard["sha256"]) for shard in done["shards"]], right=(1,))
    )
    if verbose:
        rows = [("tensor", "role", "rule", "device", "seconds")]
        for name, tensor in done["tensors"].items():
            rows.append((name, tensor["role"], tensor["rule"], tensor["device"], f"{tensor['seconds']:.3f}"))
        click.echo("\n" + table(rows, right=(4,)))


def _sources(done: dict[str, Any]) -> None:
    rows = [("base", done["base"]["model"], done["base"]["identity"])] if done["base"] else []
    rows += [(str(step), source["model"], source["identity"]) for step, source in enumerate(done["models"], 1)]
    click.echo(table(rows) + "\n")


def _run(done: dict[str, Any]) -> None:
    from dopkit.receipt import objective

    run = done["run"]
    versions = ", ".join(f"{name} {version}" for name, version in done["versions"].items() if name != "platform")
    click.echo(f"made on {run['device']} in {show_seconds(run['seconds'])}, peak memory "
               f"{show_size(run['peak_resident_bytes'])}, with {versions}")  # fmt: skip
    if total := objective(done):
        click.echo(
            f"objective over {total['matrices']} matrices: {total['before']:.4g} before, {total['after']:.4g} after"
        )
    click.echo(f"verified: {'; '.join(done['verified'].values())}\n")
