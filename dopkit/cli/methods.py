"""``dopkit methods``: what there is, and the parameters of one method."""

from __future__ import annotations

import textwrap
from typing import Any

import click

from dopkit.cli.output import json_option, show_json, table


@click.command(short_help="List the methods, or one method's parameters.")
@click.argument("name", required=False)
@json_option
def methods(name: str | None, as_json: bool) -> None:
    """List the merge methods, or the parameters of the method NAME."""
    from dopkit import methods as registry

    if name is None:
        found = registry.known()
        if as_json:
            show_json({key: method.summary for key, method in found.items()})
        else:
            click.echo(table([(key, method.summary) for key, method in found.items()]))
        return
    method = registry.find(name)
    fields = method.parameters.model_json_schema().get("properties", {})
    if as_json:
        show_json({"name": method.name, "summary": method.summary, "paper": method.paper, "parameters": fields})
        return
    click.echo(f"{method.name}: {method.summary}\n{method.paper}")
    click.echo(f"base model: {'needed' if method.needs_base else 'not needed'}; order of models: "
               f"{'matters' if method.ordered else 'does not matter'}\n")  # fmt: skip
    if not fields:
        click.echo("It has no parameters.")
    for key, field in fields.items():
        model = "  (also per model)" if key in method.parameters.per_model else ""
        click.echo(f"{key} = {_yaml(field.get('default'))}   {_allowed(field)}{model}")
        click.echo(textwrap.fill(field.get("description", ""), 96, initial_indent="    ", subsequent_indent="    "))


def _yaml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def _allowed(field: dict[str, Any]) -> str:
    """The type and bounds of a parameter in words."""
    kinds = field.get("anyOf", [field])
    return " or ".join(_one_kind(kind) for kind in kinds)


def _one_kind(kind: dict[str, Any]) -> str:
    if "enum" in kind:
        return " | ".join(map(str, kind["enum"]))
    if "const" in kind:
        return str(kind["const"])
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {kind[key]:g}" for key, sign in signs.items() if key in kind]
    name = {"number": "number", "integer": "whole number", "boolean": "true | false", "array": "list of patterns"}
    return " ".join([name.get(str(kind.get("type")), str(kind.get("type"))), ", ".join(bounds)]).strip()
