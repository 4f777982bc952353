"""``dopkit check``: the recipe alone, offline."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from dopkit.cli.output import json_option, show_json
from dopkit.errors import count

if TYPE_CHECKING:
    from dopkit.recipe import Recipe


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
    notes = [f"stage {stage.name}: {note}" for stage in loaded.stages for note in stage.recipe.notes]
    notes += loaded.notes
    if as_json:
        *stages, own = loaded.to_documents(Path(recipe).absolute().parent)
        show_json({"recipe": own, "stages": stages, "unlike_mergekit": different, "notes": notes})
        return
    click.echo(f"{recipe} is well-formed: {_what(loaded)}")
    for stage in loaded.stages:
        click.echo(f"stage {stage.name}: {_what(stage.recipe)}")
    if different:
        click.echo("mergekit 0.1.5 takes it too, and differs in this:")
        for one in different:
            click.echo(f"  {one}")
    elif different is not None:
        click.echo("mergekit 0.1.5 takes it too, and gives the same but for rounding")
    for note in notes:
        click.echo(f"note: {note}")
    click.echo("`dopkit plan` looks at the models themselves")


def _what(recipe: Recipe) -> str:
    """What is merged, in a few words."""
    models = count(len(recipe.models), "model") + (" beside the base" if recipe.method.needs_base else "")
    return f"{recipe.merge_method} over {models}"
