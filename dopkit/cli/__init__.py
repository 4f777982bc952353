"""The ``dopkit`` command: one verb a file. The only place that prints; the only importer of click and rich.

Verbs import what they need when they run, so that ``dopkit --help`` answers at once.
"""

from __future__ import annotations

import os

import click

from dopkit import __version__
from dopkit.cli import add, check, eval, init, inspect, methods, plan, push, recipes, report, run, show
from dopkit.cli.output import printable, show_error
from dopkit.errors import DopkitError, PlanError, Problem
from dopkit.processes import launched

_GO_ON = "the same command continues where it stopped"
_KEEP = ("run", "add", "push", "eval")  # what is done stays


class _Group(click.Group):
    """Turns dopkit's own errors into a message and exit code 1; anything else is a bug and keeps its traceback."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except DopkitError as error:
            if os.environ.get("DOPKIT_DEBUG"):
                raise
            show_error(error)
            ctx.exit(1)
        except KeyboardInterrupt as stop:
            said = printable(str(stop)) or (_GO_ON if ctx.invoked_subcommand in _KEEP else "")
            click.echo(f"\ninterrupted{said and '; '}{said}", err=True)
            ctx.exit(1)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order of use, not of the alphabet


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dopkit")
@click.pass_context
def main(context: click.Context) -> None:
    """Merge fine-tuned models from the Hugging Face Hub.

    A YAML recipe names a base and the models in the order they are merged; out comes a folder that transformers
    loads and the Hub understands.

    \b
      dopkit init                 write a recipe to start from
      dopkit plan recipe.yaml     see what would happen
      dopkit run recipe.yaml      merge; run again to finish an interrupted merge
      dopkit add merged user/expert  fold one more model into it
      dopkit push merged user/name   publish the merged folder
    """
    if context.invoked_subcommand != "run" and launched():
        if os.environ["RANK"] != "0":
            context.exit(1)  # the first one says why
        remedy = "Start dopkit itself, without `accelerate launch`."
        problem = Problem(f"dopkit {context.invoked_subcommand}", "is done by one process", remedy)
        raise PlanError("only a run is shared among processes", [problem])


for _verb in (
    run.run,
    add.add,
    push.push,
    plan.plan,
    inspect.inspect,
    eval.evaluate,
    report.report,
    check.check,
    methods.methods,
    show.show,
    recipes.recipes,
    init.init,
):
    main.add_command(_verb)
