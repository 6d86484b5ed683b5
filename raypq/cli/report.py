"""The `raypq report` command."""

from __future__ import annotations

import click

from raypq import console
from raypq.cli.options import PLACE, verb


@click.command()
@click.argument("places", nargs=-1, required=True, type=PLACE)
@click.option(
    "--output",
    default="report.html",
    show_default=True,
    type=PLACE,
    help="HTML file to write.",
)
@click.option("--title", default="raypq report", show_default=True)
@verb
def report(places: tuple[str, ...], output: str, title: str) -> None:
    """One self-contained HTML page of what is found in PLACES: files, folders, models, stores.

    Result files are those of raypq evaluate --json and raypq bench --json. Folders are searched.

    \b
    Example:
      raypq report results/ model codes predictions --output report.html
    """
    from raypq import api

    figures = api.report(places, output, title=title)
    console.emit(f"{output}: {figures} figures")
