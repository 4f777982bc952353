"""``dopkit add``: one more model into a merged one, or several in order."""

from __future__ import annotations

from typing import Any

import click

from dopkit.cli.output import merge_options, show_json, watching_options
from dopkit.cli.plan import show
from dopkit.cli.push import publishing_options, read_publishing
from dopkit.cli.run import report_result, result_data


class Setting(click.ParamType[tuple[str, Any]]):
    """``KEY=VALUE`` as it would stand in a recipe."""

    name = "key=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        import yaml

        if isinstance(value, tuple):
            return value
        key, equals, text = str(value).partition("=")
        if not key or not equals:
            self.fail(f"{value!r} is not of the form KEY=VALUE", param, ctx)
        try:
            return key, yaml.safe_load(text)
        except yaml.YAMLError:
            self.fail(f"{text!r} is no YAML value", param, ctx)


@click.command(short_help="Add models to a merged model.")
@click.argument("merged", metavar="MERGED")
@click.argument("experts", metavar="MODEL...", nargs=-1, required=True)
@merge_options
@click.option(
    "--set", "parameters", type=Setting(), multiple=True, help="A parameter for the new models, as alpha=0.5."
)
@click.option("--plan", "only_plan", is_flag=True, help="Show what would happen; write nothing, download no weights.")
@click.option("--from-experts", is_flag=True, help="Read the earlier models again, and merge all of them at once.")
@publishing_options
@watching_options
def add(
    merged: str,
    experts: tuple[str, ...],
    out: str | None,
    parameters: tuple[tuple[str, Any], ...],
    only_plan: bool,
    from_experts: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **how: Any,
) -> None:
    """Fold MODEL (user/name or ./folder), or several in order, into MERGED, without the models that are in it.

    MERGED is a folder that dopkit made, or user/name on the Hub. It reads the base, MERGED and the new models,
    whatever came before. A folder is replaced once the new one is complete, unless -o names another.
    """
    read_publishing(how)
    from dopkit import adding
    from dopkit.cli.progress import watch
    from dopkit.preparing import Options

    options = Options(**how)
    if only_plan:
        show(adding.plan_addition(merged, experts, out, options, dict(parameters), from_experts), as_json, verbose)
        return
    with watch(quiet=quiet or as_json, verbose=verbose) as progress:
        result = adding.add(merged, experts, out, options, progress, dict(parameters), from_experts)
    if as_json:
        show_json(result_data(result))
    elif not quiet:
        report_result(result)
        models = [model["model"] for model in result.receipt["models"]]
        click.echo(f"{result.folder} holds {len(models)} models: {', '.join(models)}")
