"""``dopkit inspect``: how the models of a recipe relate, before they are merged."""

from __future__ import annotations

import click

from dopkit.cli.output import Device, json_option, memory_option, printable, show_json
from dopkit.limits import MemoryLimit


@click.command(short_help="Show how the models relate, before merging.")
@click.argument("recipe", metavar="RECIPE")
@click.option("--device", type=Device(), default="auto", show_default=True, help="Where to compute.")
@memory_option
@click.option("--stream", is_flag=True, help="Read Hub models without storing them.")
@click.option("--no-ranks", is_flag=True, help="Leave out the ranks, which take most of the time.")
@click.option(
    "--energy",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.9,
    show_default=True,
    help="Share of the sum of singular values that a rank stands for.",
)
@click.option("--layers", is_flag=True, help="Print every part of every layer.")
@json_option
@click.option("-q", "--quiet", is_flag=True, help="Print the result alone, without progress.")
def inspect(
    recipe: str,
    device: str,
    max_memory: MemoryLimit | None,
    stream: bool,
    no_ranks: bool,
    energy: float,
    layers: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Show how the models of RECIPE relate before they are merged: norms, cosines and ranks of their task vectors.

    A task vector is what fine-tuning changed: the weights of a model minus those of the base. RECIPE is a file, or
    user/name on the Hub. Writes nothing; weights that are not here are downloaded, or streamed with --stream.
    """
    import shutil

    from dopkit import hub_recipes, inspection
    from dopkit.cli.progress import watch
    from dopkit.cli.relations import describe
    from dopkit.preparing import Options

    loaded = hub_recipes.load_recipe(recipe)
    options = Options(device=device, max_memory=max_memory, stream=stream)
    with watch(quiet=quiet or as_json, verbose=False) as progress:
        relations = inspection.inspect(loaded, options, progress, not no_ranks, energy)
    if as_json:
        show_json(relations.as_data())
    else:
        click.echo(printable(describe(relations, layers, shutil.get_terminal_size().columns)))
