"""``dopkit check``: the recipe alone, offline."""

from __future__ import annotations

import click

from dopkit.cli.output import json_option, show_json


@click.command(short_help="Check a recipe alone, offline.")
@click.argument("recipe", metavar="RECIPE")
@json_option
def check(recipe: str, as_json: bool) -> None:
    """Check RECIPE alone: spelling, values, method. No model is opened, and for a file no network is used.

    RECIPE is a file, or a repository on the Hub that carries one: user/name.
    """
    from pathlib import Path

    from dopkit.hub_recipes import load_recipe

    loaded = load_recipe(recipe)
    if as_json:
        show_json({"recipe": loaded.to_data(Path(recipe).absolute().parent)})
        return
    models = len(loaded.models)
    click.echo(f"{recipe} is well-formed: {loaded.merge_method} over {models} model{'s' if models > 1 else ''}")
    click.echo("`dopkit plan` looks at the models themselves")
