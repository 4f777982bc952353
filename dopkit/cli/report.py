"""``dopkit report``: one HTML page about a merged folder."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(short_help="Write one HTML page about a merged folder.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Where to write (default: FOLDER/report.html). An earlier page is replaced.")  # fmt: skip
def report(folder: Path, out: Path | None) -> None:
    """Write what is known of FOLDER, which dopkit made, as one self-contained HTML page.

    Scores are in it after `dopkit eval`. It loads nothing from anywhere and needs no script.
    """
    from dopkit import report as page

    click.echo(page.write(folder, out))
