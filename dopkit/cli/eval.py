"""``dopkit eval``: score a model, or a merge and its steps, on tasks."""

from __future__ import annotations

from typing import Any

import click

from dopkit.cli.output import Device, json_option, printable, show_json, table


@click.command("eval", short_help="Score a merged model and its steps on tasks.")
@click.argument("model", metavar="FOLDER|USER/NAME")
@click.option("--tasks", required=True, metavar="FILE", help="What to score on, as docs/evaluation.md describes it.")
@click.option("--device", type=Device(), default="auto", show_default=True, help="Where to compute.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="No more than N samples of each task.")
@click.option("--sources", is_flag=True, help="Score the base and the models that were merged, too.")
@json_option
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
def evaluate(model: str, tasks: str, device: str, limit: int | None, sources: bool, as_json: bool, quiet: bool) -> None:
    """Score MODEL on the tasks of a file: one model, or a merge and, where `run --save-steps` kept them, its steps.

    The results go into dopkit_evaluation.json beside the model and, of a merge, into its receipt and card. What was
    scored before is not scored again. Of a repository on the Hub nothing is written.
    """
    from dopkit.cli.progress import watch
    from dopkit.evaluation import evaluate_model

    with watch(quiet=quiet or as_json, verbose=False) as progress:
        found = evaluate_model(model, tasks, device, limit, sources, progress)
    if as_json:
        show_json(found)
    elif not quiet:
        show_scores(found)


def show_scores(found: dict[str, Any]) -> None:
    """The table of scores, then ACC and BWT with their definitions."""
    from dopkit.evaluation.results import matrix, sentences

    rows = matrix(found)
    first = len(rows[0]) - len(found["tasks"])  # the columns before are words
    click.echo(printable(table(rows, right=range(first, len(rows[0])))))
    for sentence in sentences(found):
        click.echo(printable(f"\n{sentence}"))
