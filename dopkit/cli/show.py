"""``dopkit show``: what a merged model carries with it, read back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from dopkit.cli.eval import show_scores
from dopkit.cli.output import json_option, printable, show_json, table
from dopkit.units import show_seconds, show_size


@click.command(short_help="Show recipe, commits and receipt of a merged model.")
@click.argument("model", metavar="FOLDER|USER/NAME")
@json_option
@click.option("-v", "--verbose", is_flag=True, help="List every tensor with its rule and time.")
def show(model: str, as_json: bool, verbose: bool) -> None:
    """Show the recipe, the pinned commits and the receipt of a merged model: a folder, or a repository on the Hub.

    Of a repository only these two small files are fetched.
    """
    from dopkit import receipt

    recipe, done = _read(model)
    if as_json:
        show_json({"recipe": recipe, "receipt": done})
        return
    _say(f"# {receipt.RECIPE_FILE}\n{recipe}")
    if done is None:
        _say("a recipe without weights: nothing was merged here yet")
        return
    _sources(done)
    _run(done)
    if done["shards"]:
        shards = [(shard["file"], show_size(shard["bytes"]), shard["sha256"]) for shard in done["shards"]]
        _say(table(shards, right=(1,)))
    if done.get("heads"):
        heads = [(head["name"], head["architecture"], head["model"]) for head in done["heads"]]
        _say("\n" + table([("head", "class", "of"), *heads]))
    if "evaluation" in done:
        _say("")
        show_scores(done["evaluation"])
    if verbose:
        rows = [("tensor", "role", "rule", "device", "seconds")]
        for name, tensor in done["tensors"].items():
            rows.append((name, tensor["role"], tensor["rule"], tensor["device"], f"{tensor['seconds']:.3f}"))
        _say("\n" + table(rows, right=(4,)))


def _read(model: str) -> tuple[str, dict[str, Any] | None]:
    """Recipe and receipt. What is a folder here is not looked for on the Hub."""
    from dopkit import hub_recipes, receipt
    from dopkit.recipe.document import text_of

    folder = Path(model)
    ref = None if os.path.isdir(folder) else hub_recipes.repository(model)
    if ref is not None:
        found = hub_recipes.read(ref)
        return found.text, found.receipt
    done = receipt.read(folder)
    return text_of(folder / receipt.RECIPE_FILE, "recipe"), done


def _say(text: str) -> None:
    click.echo(printable(text))


def _sources(done: dict[str, Any]) -> None:
    rows = [("base", done["base"]["model"], done["base"]["identity"])] if done["base"] else []
    rows += [(str(step), source["model"], source["identity"]) for step, source in enumerate(done["models"], 1)]
    _say(table(rows) + "\n" if rows else "")


def _run(done: dict[str, Any]) -> None:
    from dopkit.receipt import objective

    run = done["run"]
    versions = ", ".join(f"{name} {version}" for name, version in done["versions"].items() if name != "platform")
    _say(f"made on {run['device']} in {show_seconds(run['seconds'])}, peak memory "
               f"{show_size(run['peak_resident_bytes'])}, with {versions}")  # fmt: skip
    if clause := objective(done):
        _say(clause)
    _say(f"verified: {'; '.join(done['verified'].values())}\n")
