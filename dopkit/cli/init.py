"""``dopkit init``: a commented recipe to start from."""

from __future__ import annotations

from pathlib import Path

import click

from dopkit.cli.output import write_new

TEMPLATE = """\
# A dopkit recipe. `dopkit check` reads it, `dopkit plan` looks at the models, `dopkit run` merges.

# What the models were fine-tuned from. A model is user/name on the Hub (user/name@revision for a branch, tag or
# commit) or a folder: ./folder, from where this file lies.
base_model: user/base

# `dopkit methods` lists them, `dopkit methods dop` explains this one.
merge_method: dop

# In the order in which they are merged.
models:
  - user/first-expert
  - user/second-expert
  - model: user/third-expert
    parameters:
      alpha: 0.7        # for the step that folds this model in

parameters:
  alpha: 0.8            # weight of what is merged so far against the incoming model
  solver: exact         # or adam, the published procedure

# Of the files that are written; arithmetic is always in float32. Without it each tensor keeps the base's dtype.
# dtype: bfloat16

# When the models' output heads have other shapes: merge the backbones and keep every head beside them, take the
# base's head, or have none.
# heads: per-task       # or base, or drop

# Tensors to take from the base as they are.
# copy: ["embeddings.*"]
"""


@click.command(short_help="Write a commented recipe to start from.")
@click.argument("file", type=click.Path(path_type=Path), default=Path("recipe.yaml"))
def init(file: Path) -> None:
    """Write a commented recipe to FILE (default: recipe.yaml); `-` prints it."""
    if str(file) == "-":
        click.echo(TEMPLATE, nl=False)
        return
    write_new(file, TEMPLATE, remedy="Name another file: `dopkit init FILE`.")
    click.echo(f"wrote {file}; edit it, then `dopkit plan {file}`")
