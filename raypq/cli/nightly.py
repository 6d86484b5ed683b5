"""The `raypq reindex` command."""

from __future__ import annotations

from typing import Any

import click

from raypq.cli.options import PLACE, Number, show, verb


@click.command()
@click.option("--config", required=True, type=PLACE, help="YAML file, such as nightly.yaml.")
@click.option("--dry-run", is_flag=True, help="Print the plan and its estimated time; do nothing.")
@click.option(
    "--rollout",
    type=Number(0, 1, min_open=True),
    help="Share of the shards to move to a new model tonight. [default: the config's, or all]",
)
@click.option(
    "--fail-on-drift", is_flag=True, help="Exit with 1 if new shards drifted; all is committed."
)
@click.option(
    "--fail-on-quarantined",
    is_flag=True,
    help="Exit with 1 if shards are left out; everything else is committed.",
)
@click.option(
    "--on-bad-shard",
    type=click.Choice(["fail", "quarantine"]),
    help="Fail after all good shards are done (and try those that are left out), or leave bad ones "
    "out and record them. [default: the config's, or fail]",
)
@click.option("--cluster", help="none, local, or a Ray address. [default: the config's]")
@click.option("--workers", type=click.IntRange(1), help="[default: the config's]")
@verb
def reindex(config: str, **options: Any) -> None:
    """Bring codes and predictions up to date with a feature store: only what changed is done.

    \b
    Example:
      raypq reindex --config nightly.yaml --dry-run
    """
    from raypq import api
    from raypq.config import ReindexJob, read_mapping
    from raypq.data.store import overlap

    values = read_mapping(config)
    where = {name: options.pop(name) for name in ("cluster", "workers")}
    given = {name: value for name, value in where.items() if value is not None}
    noted = values.get("where", {})
    if given and isinstance(noted, dict):  # what is no section is refused with the rest
        values["where"] = {**noted, **given}
    values |= {name: value for name, value in options.items() if value}
    asked = ReindexJob.parse(values, origin=config)
    overlap.refuse(asked, config=overlap.read_file("--config", config))
    show(api.reindex(asked))
