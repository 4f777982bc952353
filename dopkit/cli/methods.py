"""``dopkit methods``: what there is, and the parameters of one method."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import click

from dopkit.cli.output import json_option, show_json, table

if TYPE_CHECKING:
    from dopkit.methods import Method


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
            click.echo(_in_families(found))
        return
    method = registry.find(name)
    fields = method.parameters.model_json_schema().get("properties", {})
    if as_json:
        show_json({"name": method.name, "summary": method.summary, "paper": method.paper, "parameters": fields})
        return
    click.echo(f"{method.name}: {method.summary}\n{method.paper}")
    click.echo(f"base model: {'needed' if method.needs_base else 'not needed'}; order of models: "
               f"{'matters' if method.ordered else 'does not matter'}; models: {_number(method)}\n")  # fmt: skip
    if not fields:
        click.echo("It has no parameters.")
    for key, field in fields.items():
        model = "  (also per model)" if key in method.parameters.per_model else ""
        model = "  (of each model)" if key in method.parameters.companions else model
        default = "required" if field.get("default") is None else f"= {_yaml(field['default'])}"
        click.echo(f"{key} {default}   {_allowed(field)}{model}")
        click.echo(textwrap.fill(field.get("description", ""), 96, initial_indent="    ", subsequent_indent="    "))


def _in_families(found: dict[str, Method]) -> str:
    """The methods under the heading of their family, the families in the order of the built-in methods."""
    from dopkit.methods import BUILTIN

    order = dict.fromkeys(method.family for method in (*BUILTIN.values(), *found.values()))
    rows = table([(f"  {key}", method.summary) for key, method in found.items()]).splitlines()
    lines = dict(zip(found, rows, strict=True))
    parts = [
        "\n".join([f"{family}:", *(lines[key] for key, method in found.items() if method.family == family)])
        for family in order
    ]
    return "\n\n".join(parts)


def _number(method: Method) -> str:
    """How many models it takes, in words."""
    least, most = method.least_models, method.most_models
    number = f"{least} or more" if most is None else str(most) if least == most else f"{least} to {most}"
    return f"{number} beside the base" if method.needs_base else number


def _yaml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def _allowed(field: dict[str, Any]) -> str:
    """The type and bounds of a parameter in words."""
    kinds = [kind for kind in field.get("anyOf", [field]) if kind.get("type") != "null"]
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
