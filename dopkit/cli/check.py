"""``dopkit check``: the recipe alone, offline."""

from __future__ import annotations

import click

from dopkit.cli.output import json_option, show_json
from dopkit.errors import count


@click.command(short_help="Check a recipe alone, offline.")
@click.argument("recipe", metavar="RECIPE")
@json_option
def check(recipe: str, as_json: bool) -> None:
    """Check RECIPE alone: spelling, values, method. No model is opened, and for a file no network is used.

    RECIPE is a file, or a repository on the Hub that carries one: user/name.
    """
    from pathlib import Path

    from dopkit.hub_recipes import load_recipe
    from dopkit.recipe.dialect import differences, is_mergekits

    loaded = load_recipe(recipe)
    different = list(differences(loaded)) if is_mergekits(loaded) else None
    if as_json:
        show_json(
            {"recipe": loaded.to_data(Path(recipe).absolute().parent), "unlike_mergekit": different}
            | {"notes": list(loaded.notes)}
        )
        return
    models = count(len(loaded.models), "model") + (" beside the base" if loaded.method.needs_base else "")
    click.echo(f"{recipe} is well-formed: {loaded.merge_method} over {models}")
    if different:
        click.echo("mergekit 0.1.5 takes it too, and differs in this:")
        for one in different:
            click.echo(f"  {one}")
    elif different is not None:
        click.echo("mergekit 0.1.5 takes it too, and gives the same but for rounding")
    for note in loaded.notes:
        click.echo(f"note: {note}")
    click.echo("`dopkit plan` looks at the models themselves")
