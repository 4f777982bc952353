"""``dopkit push``: publish a merged folder; and the options that it shares with ``dopkit run --push-to-hub``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dopkit.cli.output import Command, json_option, show_json

if TYPE_CHECKING:
    from dopkit.publishing import Pushed, PushOptions

_NAMES = ("private", "create_pr", "revision", "message", "allow_local_sources")


def push_options(command: Command) -> Command:
    """How to publish."""
    for option in reversed(
        (
            click.option("--private", is_flag=True, help="Make the repository private, if it is still to be made."),
            click.option("--create-pr", is_flag=True, help="Open a pull request instead of writing to main."),
            click.option("--revision", metavar="BRANCH", help="Branch to push to, made if it is missing."),
            click.option("--message", metavar="TEXT", help="Message of the commit."),
            click.option(
                "--allow-local-sources", is_flag=True, help="Publish a recipe that names folders of this machine."
            ),
        )
    ):
        command = option(command)
    return command


def publishing_options(command: Command) -> Command:
    """Whether a merge is published when it is made, where, and how."""
    for option in reversed(
        (
            click.option("--push-to-hub", is_flag=True, help="Publish the result on the Hub."),
            click.option(
                "--repo-id", metavar="USER/NAME", help="Where to publish (default: the recipe's repo_id; MERGED's own)."
            ),
            push_options,
        )
    ):
        command = option(command)
    return command


def read_publishing(given: dict[str, Any]) -> None:
    """Put ``push`` in the place of the options of ``publishing_options``, if they ask for one."""
    wanted, repo_id = given.pop("push_to_hub"), given.pop("repo_id")
    if wanted:
        given["push"] = read_options(given, repo_id, given["overwrite"])
        return
    taken = {"repo_id": repo_id, **{name: given.pop(name) for name in _NAMES}}
    if unread := [f"--{name.replace('_', '-')}" for name, value in taken.items() if value]:
        raise click.UsageError(f"{', '.join(unread)} needs --push-to-hub")


def read_options(given: dict[str, Any], repo_id: str | None, overwrite: bool) -> PushOptions:
    """Take the options of ``push_options`` out of ``given``."""
    from dopkit.publishing import PushOptions

    taken = {name: given.pop(name) for name in _NAMES}
    if taken["create_pr"] and taken["revision"]:
        raise click.UsageError("--create-pr is made against main: leave out --revision")
    return PushOptions(repo_id, overwrite=overwrite, **{name: value for name, value in taken.items() if value})


def report(pushed: Pushed) -> None:
    if pushed.files:
        click.echo(f"pushed to {pushed.url}, commit {pushed.commit[:12]}; names, sizes and hashes there are verified")
    else:
        click.echo(f"{pushed.url} already holds this merge; nothing was sent")


@click.command(short_help="Publish a merged folder on the Hub.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("repo_id", metavar="USER/NAME")
@push_options
@click.option("--overwrite", is_flag=True, help="Replace a model that dopkit did not make.")
@json_option
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
def push(folder: Path, repo_id: str, overwrite: bool, as_json: bool, quiet: bool, **how: Any) -> None:
    """Publish FOLDER, which dopkit made, as the model repository USER/NAME; push again to finish a broken push.

    Weights, config, tokenizer, recipe, receipt and card appear together, in one commit.
    """
    options = read_options(how, repo_id, overwrite)
    from dataclasses import asdict

    from dopkit import publishing
    from dopkit.cli.progress import watch

    with watch(quiet=quiet or as_json, verbose=False) as progress:
        done = publishing.push(folder, repo_id, options, progress)
    if as_json:
        show_json(asdict(done))
    elif not quiet:
        report(done)
