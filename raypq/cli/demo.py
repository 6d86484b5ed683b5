"""The `raypq demo` command."""

from __future__ import annotations

from typing import Any

import click

from raypq import console
from raypq.cli.options import cluster, verb, where_of


@click.command()
@click.option(
    "--output", default="demo-output", show_default=True, help="Folder to write everything to."
)
@click.option("--images", type=click.IntRange(1000), default=40_000, show_default=True)
@click.option("--classes", "n_classes", type=click.IntRange(40), default=400, show_default=True)
@click.option(
    "--dims", type=click.IntRange(16), default=512, show_default=True, help="Feature width."
)
@click.option(
    "--sub-codebooks",
    "M",
    type=click.IntRange(1),
    default=50,
    show_default=True,
    help="Bytes per image.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@cluster
@verb
def demo(**options: Any) -> None:
    """Generate an ImageNet-like feature store and run the whole path on it.

    \b
    Example:
      raypq demo --images 100000 --classes 1000
    """
    from raypq import demo as story

    where = where_of(options)
    console.emit(story.run(story.DemoSettings(**options), where))
