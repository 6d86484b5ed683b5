"""Verbs that find images: search."""

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

metric = click.option(
    "--metric", type=click.Choice(["l2", "cosine", "dot"]), help="[default: the model's]"
)


@click.command()
@click.option("--codes", required=True, help="Code store.")
@click.option(
    "--version", type=click.IntRange(1), help="Version of the code store. [default: latest]"
)
@click.option("--model", help="Model directory. [default: the models kept in the code store]")
@click.option("--queries", multiple=True, help="Query features (Parquet); may be repeated.")
@click.option("--query-ids", help="Instead: a file of ids of stored codes, one a line (SDC).")
@click.option("--top-k", type=click.IntRange(1), default=100, show_default=True)
@metric
@click.option(
    "--distance",
    type=click.Choice(["adc", "sdc"]),
    default="adc",
    show_default=True,
    help="Queries as they are (asymmetric), or compressed too (symmetric).",
)
@click.option("--where", "filter_", metavar="EXPRESSION", help="Rows to search: \"label = 'x'\".")
@click.option("--ids", help="Search only rows with these ids: a file, one a line.")
@click.option(
    "--rerank", type=click.IntRange(1), help="Candidates to score again by their original vectors."
)
@click.option("--features", multiple=True, help="The original vectors, for --rerank.")
@click.option("--output", required=True, help="Result store to write a version of.")
@bad_shard
@columns
@cluster
@verb
def search(filter_: str | None, **options: Any) -> None:
    """Find the nearest stored images of every query.

    \b
    Example:
      raypq search --codes codes --queries queries/ --top-k 100 --output results
    """
    from raypq import api
    from raypq.config import SearchJob

    where, columns = where_of(options), columns_of(options)
    options |= {
        "queries": list(options["queries"]) or None,
        "features": list(options["features"]) or None,
        "filter": filter_,
        "where": where,
        "columns": columns,
    }
    version = api.search(job(SearchJob, options))
    result = told(version, options["output"])
    result["queries"] = result.pop("images")
    show(result | {"refused": version.summary["refused"]})
