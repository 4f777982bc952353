"""``dopkit run``: merge, or finish an interrupted merge."""

from __future__ import annotations

from typing import Any

import click

from dopkit.cli.output import json_option, merge_options, show_json


@click.command(short_help="Merge, or finish an interrupted merge.")
@click.argument("recipe", metavar="RECIPE")
@merge_options
@json_option
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("-v", "--verbose", is_flag=True, help="Print a line for every tensor.")
def run(recipe: str, out: str | None, as_json: bool, quiet: bool, verbose: bool, **how: Any) -> None:
    """Merge the models of RECIPE; run again to finish an interrupted merge.

    Everything is checked before a weight is downloaded or a file written. The output folder appears when it is
    complete.
    """
    from dopkit import pipeline
    from dopkit.cli.progress import watch
    from dopkit.recipe.reading import load_recipe

    loaded = load_recipe(recipe)
    with watch(quiet=quiet or as_json, verbose=verbose) as progress:
        result = pipeline.run(loaded, out, pipeline.Options(**how), progress)
    if as_json:
        show_json({"folder": str(result.folder), "already_there": result.already_there, "receipt": result.receipt})
    elif not quiet:
        _report(result)


def _report(result: Any) -> None:
    from dopkit import receipt
    from dopkit.units import show_seconds, show_size

    if result.already_there:
        click.echo(f"{result.folder} already is this merge; nothing to do (--overwrite makes it again)")
        return
    measured = result.receipt["run"]
    rules = ", ".join(f"{tensors} {rule}" for rule, (tensors, _) in result.plan.rules().items())
    click.echo(f"merged {len(result.plan.jobs)} tensors ({rules}) into {result.folder}")
    if total := receipt.objective(result.receipt):
        click.echo(
            f"objective over {total['matrices']} matrices: {total['before']:.4g} before, {total['after']:.4g} after"
        )
    size, peak = show_size(result.plan.output_bytes), show_size(measured["peak_resident_bytes"])
    click.echo(f"{size} in {show_seconds(measured['seconds'])}, peak memory {peak}")
    click.echo(f"verified: {'; '.join(result.receipt['verified'].values())}")
