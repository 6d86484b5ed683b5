"""The `raypq encode` command."""

from __future__ import annotations

from typing import Any

import click

from raypq.cli.options import (
    bad_shard,
    cluster,
    columns,
    columns_of,
    job,
    show,
    told,
    verb,
    where_of,
)

features = click.option(
    "--features",
    required=True,
    multiple=True,
    help="Parquet folder, file or glob; may be repeated.",
)


@click.command()
@click.option("--model", required=True, help="Model directory.")
@features
@click.option("--output", required=True, help="Code store to write a version of.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16"]),
    default="fp32",
    show_default=True,
    help="Of the projection; bf16 is faster and the share of codes it changes is reported.",
)
@click.option(
    "--duplicate-ids",
    type=click.Choice(["report", "refuse", "ignore"]),
    default="report",
    show_default=True,
    help="Ids that are there more than once: warn, make no version, or do not look.",
)
@click.option(
    "--append",
    is_flag=True,
    help="Keep the shards of the last version that are not among these features, as they are; "
    "otherwise the new version holds these features alone.",
)
@bad_shard
@columns
@cluster
@verb
def encode(**options: Any) -> None:
    """Turn features into codes: one code file for each shard, one new version of the store.

    \b
    Example:
      raypq encode --model model --features 'features/*.parquet' --output codes
      raypq encode --model model --features features/day=2 --output codes --append
    """
    from raypq import api
    from raypq.config import EncodeJob

    where, columns = where_of(options), columns_of(options)
    options |= {"features": list(options["features"]), "where": where, "columns": columns}
    version = api.encode(job(EncodeJob, options))
    changed = {
        key: version.summary[key]
        for key in ("codes_changed_by_precision", "dropped", "duplicate_ids", "images_left_out")
        if key in version.summary
    }
    show(told(version, options["output"]) | changed)
