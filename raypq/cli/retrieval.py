"""Commands of retrieval: search, duplicates, evaluate retrieval, export-faiss, import-faiss."""

from __future__ import annotations

from typing import Any

import click

from raypq.cli import result_tables
from raypq.cli.classification import evaluate
from raypq.cli.options import (
    Number,
    bad_shard,
    cluster,
    columns,
    columns_of,
    job,
    options,
    show,
    told,
    verb,
    where_of,
)

metric = click.option(
    "--metric", type=click.Choice(["l2", "cosine", "dot"]), help="[default: the model's]"
)
codes = options(
    click.option("--codes", required=True, help="Code store."),
    click.option(
        "--version", type=click.IntRange(1), help="Version of the code store. [default: latest]"
    ),
    click.option("--model", help="Model directory. [default: the models kept in the code store]"),
)
distance = click.option(
    "--distance",
    type=click.Choice(["adc", "sdc"]),
    default="adc",
    show_default=True,
    help="Queries as they are (asymmetric), or compressed too (symmetric).",
)


@click.command()
@codes
@click.option("--queries", multiple=True, help="Query features (Parquet); may be repeated.")
@click.option(
    "--query-ids",
    help="Instead: a file of ids of stored codes, one a line; needs --distance sdc.",
)
@click.option(
    "--top-k", type=click.IntRange(1), default=100, show_default=True, help="Images of a query."
)
@metric
@distance
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
def search(filter_: str | None, **values: Any) -> None:
    """Find the nearest stored images of every query.

    \b
    Example:
      raypq search --codes codes --queries queries/ --top-k 100 --output results
    """
    from raypq import api
    from raypq.config import SearchJob

    where, columns = where_of(values), columns_of(values)
    values |= {
        "queries": list(values["queries"]) or None,
        "features": list(values["features"]) or None,
        "filter": filter_,
        "where": where,
        "columns": columns,
    }
    version = api.search(job(SearchJob, values))
    result = told(version, values["output"])
    result["queries"] = result.pop("images")
    show(result | {"refused": version.summary["refused"]})


@click.command()
@codes
@click.option(
    "--threshold",
    type=Number(),
    required=True,
    help="Largest squared distance (l2) or smallest score (cosine, dot) of a pair.",
)
@metric
@click.option(
    "--max-pairs",
    type=click.IntRange(1),
    default=20_000_000,
    show_default=True,
    help="Refuse a threshold that gives more.",
)
@click.option("--output", required=True, help="Store of pairs to write a version of.")
@bad_shard
@cluster
@verb
def duplicates(**values: Any) -> None:
    """Find every pair of stored images within a threshold, from their codes alone.

    \b
    Example:
      raypq duplicates --codes codes --threshold 0.05 --output pairs
    """
    from raypq import api
    from raypq.config import DuplicatesJob

    values["where"] = where_of(values)
    version = api.duplicates(job(DuplicatesJob, values))
    result = told(version, values["output"])
    result["pairs"] = result.pop("images")
    show(result)


@click.command("export-faiss")
@codes
@click.option("--metric", type=click.Choice(["l2", "dot"]), help="[default: the model's]")
@click.option("--output", required=True, help="Index file to write.")
@verb
def export_faiss(**values: Any) -> None:
    """Write a code store and its model as a FAISS index.

    \b
    Example:
      raypq export-faiss --codes codes --output codes.faiss
    """
    from raypq import api
    from raypq.config import ExportFaissJob

    show(api.export_faiss(job(ExportFaissJob, values)))


@click.command("import-faiss")
@click.argument("index")
@click.option("--output", required=True, help="Model directory to write.")
@click.option("--overwrite", is_flag=True, help="Replace a model that is there already.")
@verb
def import_faiss(**values: Any) -> None:
    """Make a model of a FAISS index: a trained PQ or OPQ, with what stands before it.

    \b
    Example:
      raypq import-faiss opq.faiss --output model
    """
    from raypq import api
    from raypq.config import ImportFaissJob

    show(api.import_faiss(job(ImportFaissJob, values)))


@evaluate.command("retrieval")
@codes
@click.option(
    "--queries", multiple=True, required=True, help="Labelled features (Parquet); may be repeated."
)
@metric
@distance
@click.option(
    "--at",
    type=click.IntRange(1),
    multiple=True,
    default=(1, 10, 100),
    show_default=True,
    help="R of the figures @R; may be repeated.",
)
@click.option(
    "--features",
    multiple=True,
    help="The store's features: measures recall@R against exact search in them.",
)
@result_tables.json_file
@columns
@cluster
@verb
def evaluate_retrieval(json_file: str | None, **values: Any) -> None:
    """Mean average precision of the full ranking, mAP@R, precision@R and recall@R of a code store.

    \b
    Example:
      raypq evaluate retrieval --codes codes --queries queries/ --features features/
    """
    from raypq import api
    from raypq.config import RetrievalJob

    where, columns = where_of(values), columns_of(values)
    values |= {
        "queries": list(values["queries"]),
        "features": list(values["features"]) or None,
        "where": where,
        "columns": columns,
    }
    asked = job(RetrievalJob, values)
    result_tables.check(asked, json_file)
    result = api.evaluate_retrieval(asked)
    result_tables.tell(result, json_file, result_tables.retrieval)
