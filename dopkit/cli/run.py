"""``dopkit run``: merge, or finish an interrupted merge."""

from __future__ import annotations

from typing import Any

import click

from dopkit.cli.eval import show_scores
from dopkit.cli.output import (
    cluster_options,
    cut_as_published,
    keep_stages_option,
    merge_options,
    printable,
    read_cluster,
    show_json,
    watching_options,
)
from dopkit.cli.push import publishing_options, read_publishing, report


@click.command(short_help="Merge, or finish an interrupted merge.")
@click.argument("recipe", metavar="RECIPE")
@merge_options
@keep_stages_option
@cluster_options
@publishing_options
@watching_options
def run(
    recipe: str,
    out: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **how: Any,
) -> None:
    """Merge the models of RECIPE; run again to finish an interrupted merge.

    RECIPE is a file, or a repository on the Hub that carries one: user/name makes a published merge again.
    `accelerate launch --num_processes N -m dopkit run RECIPE` shares the work among N processes, `--executor ray`
    among the workers of a Ray cluster.
    Everything is checked before a weight is downloaded or a file written. The output folder appears when it is
    complete.
    """
    read_publishing(how)
    read_cluster(how)
    from dopkit import processes

    together = processes.join(how["device"])
    try:
        _run(recipe, out, as_json, quiet, verbose, how, together)
    finally:
        together.leave()


def _run(
    recipe: str, out: str | None, as_json: bool, quiet: bool, verbose: bool, how: dict[str, Any], together: Any
) -> None:
    """One of the processes that are ``together``; the first speaks."""
    from dopkit import hub_recipes, pipeline
    from dopkit.cli.progress import watch

    with together.first_goes_first():
        origin = hub_recipes.pinned(recipe)
        loaded = hub_recipes.load_recipe(origin or recipe)
        cut_as_published(origin, how)
    with watch(quiet=quiet or as_json or not together.first, verbose=verbose) as progress:
        result = pipeline.run(loaded, out, pipeline.Options(processes=together, **how), progress)
    if not together.first:
        return
    if as_json:
        show_json(result_data(result))
    elif not quiet:
        report_result(result)
        if origin is not None:
            click.echo(printable(hub_recipes.comparison(origin, result.receipt)))


def result_data(result: Any) -> dict[str, Any]:
    """What came of a merge, for ``--json``."""
    from dataclasses import asdict

    data = {"folder": str(result.folder), "already_there": result.already_there, "receipt": result.receipt}
    return data | ({"pushed": asdict(result.pushed)} if result.pushed else {})


def report_result(result: Any) -> None:
    """What came of a merge, and where it was published."""
    _report(result)
    if result.assessment:
        show_scores(result.assessment.evaluation)
        click.echo(f"\nreport: {result.assessment.report}")
    if result.pushed:
        report(result.pushed)
        if not all((result.folder / shard["file"]).exists() for shard in result.receipt["shards"]):
            click.echo(f"the weights are on the Hub alone; {result.folder} holds the rest")


def _report(result: Any) -> None:
    from dopkit import receipt
    from dopkit.units import show_seconds, show_size

    if result.already_there:
        click.echo(f"{result.folder} already is this merge; nothing to do (--overwrite makes it again)")
        return
    measured = result.receipt["run"]
    rules = ", ".join(f"{tensors} {rule}" for rule, (tensors, _) in result.plan.rules().items())
    click.echo(f"merged {len(result.plan.jobs)} tensors ({rules}) into {result.folder}")
    if objective := receipt.objective(result.receipt):
        click.echo(objective)
    size, peak = show_size(result.plan.output_bytes), show_size(measured["peak_resident_bytes"])
    click.echo(f"{size} in {show_seconds(measured['seconds'])}, peak memory {peak}")
    click.echo(f"verified: {'; '.join(result.receipt['verified'].values())}")
