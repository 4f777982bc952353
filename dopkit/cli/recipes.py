"""``dopkit recipes``: merges on the Hub that carry a recipe; fetch one, share one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dopkit.cli.output import json_option, printable, show_json, table, write_new


@click.group(short_help="Find, fetch and share recipes on the Hub.")
def recipes() -> None:
    """Find, fetch and share recipes on the Hub.

    `dopkit plan user/name` and `dopkit run user/name` take a recipe from where it is.
    """


@recipes.command(short_help="List merges on the Hub that carry a recipe.")
@click.argument("words", nargs=-1)
@click.option(
    "--sort",
    type=click.Choice(["newest", "likes", "downloads"]),
    default="newest",
    show_default=True,
    help="What comes first.",
)
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="Most lines to print.")
@json_option
def search(words: tuple[str, ...], sort: Any, limit: int, as_json: bool) -> None:
    """List the merges and recipes on the Hub that are tagged `dopkit` and have WORDS in their name."""
    from dopkit import hub, hub_recipes

    found = [
        (one, *hub_recipes.describe(one.card)) for one in hub.search(hub_recipes.TAG, " ".join(words), sort, limit)
    ]
    if as_json:
        show_json([_as_data(*one) for one in found])
    elif not found:
        click.echo("nothing on the Hub is tagged `dopkit`" + (f" and has {' '.join(words)} in its name" * bool(words)))
    else:
        rows = [("repository", "holds", "likes", "downloads", "updated", "base model", "method")]
        for one, base, method in found:
            day = one.updated.date().isoformat() if one.updated else ""
            holds = "recipe" if hub_recipes.RECIPE_TAG in one.tags else "model"
            rows.append((one.repo, holds, str(one.likes), str(one.downloads), day, base, method))
        click.echo(printable(table(rows, right=(2, 3))))


def _as_data(found: Any, base: str, method: str) -> dict[str, Any]:
    return {
        "repository": found.repo,
        "likes": found.likes,
        "downloads": found.downloads,
        "updated": found.updated.isoformat() if found.updated else None,
        "base_model": base or None,
        "merge_method": method or None,
        "tags": list(found.tags),
    }


@recipes.command(short_help="Fetch a recipe to edit.")
@click.argument("repository", metavar="USER/NAME")
@click.option("-o", "--out", metavar="FILE", help="Where to write it (default: NAME.yaml); `-` prints it.")
def get(repository: str, out: str | None) -> None:
    """Fetch the recipe that USER/NAME (or USER/NAME@REVISION) carries."""
    from dopkit import hub, hub_recipes

    ref = hub_recipes.named(repository)
    if ref is None:
        raise click.UsageError(f"{repository!r} is not a repository on the Hub (user/name)")
    ref = hub.pin(ref)
    text = hub_recipes.recipe_text(ref)
    hub_recipes.foreign(text, ref)  # what cannot be run is not handed out
    if out == "-":
        click.echo(printable(text), nl=False)
        return
    file = Path(out or f"{ref.name.rpartition('/')[2]}.yaml")
    write_new(file, text, remedy="Name another file with -o.")
    click.echo(f"wrote {file}, the recipe of {ref.short}; `dopkit plan {file}` shows what it would do")


@recipes.command(short_help="Publish a recipe as a small repository.")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("repository", metavar="USER/NAME")
@click.option("--private", is_flag=True, help="Make the repository private.")
@click.option("--message", help="Of the commit.")
def share(file: Path, repository: str, private: bool, message: str | None) -> None:
    """Publish the recipe in FILE as the repository USER/NAME: the recipe with its models pinned, and a card.

    A repository that was not made this way is not written to.
    """
    from dopkit import hub_recipes

    shared = hub_recipes.share(hub_recipes.load_recipe(file), repository, message, private)
    click.echo(f"{'shared as' if shared.changed else 'nothing has changed at'} {shared.url}")
