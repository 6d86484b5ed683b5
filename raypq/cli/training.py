"""The `raypq train` and `ablation` commands."""

from __future__ import annotations

from typing import Any

import click

from raypq import console
from raypq.cli.encoding import features
from raypq.cli.options import (
    PLACE,
    Number,
    assigned,
    bad_shard,
    cluster,
    columns,
    columns_of,
    job,
    show,
    verb,
    where_of,
)


@click.command()
@click.argument("method")
@features
@click.option(
    "--unlabelled", multiple=True, help="Rows without labels, for methods that learn from them too."
)
@click.option("--classes", help="Class table (Parquet).")
@click.option("--output", required=True, help="Model directory to write.")
@click.option("--config", type=PLACE, help="YAML file of method settings; --set counts over it.")
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="A method setting, such as M=37; counts over --config.",
)
@click.option("--overwrite", is_flag=True, help="Replace a model that is there already.")
@click.option("--tune", is_flag=True, help="Choose settings on held-out training classes first.")
@click.option(
    "--cache-gb",
    type=Number(0),
    help="GiB of features that a worker keeps. [default: what its memory leaves, 4 at most]",
)
@bad_shard
@columns
@cluster
@verb
def train(
    method: str,
    config: str | None,
    assignments: tuple[str, ...],
    cache_gb: float | None,
    **options: Any,
) -> None:
    """Train METHOD (pq, opq, pqzsl, vq, dpq, gpq, psr, clusterable, eszsl, sae) and save its model.

    \b
    Example:
      raypq train pqzsl --features train/ --classes classes.parquet --output model --set M=37
    """
    from raypq import api
    from raypq.config import TrainJob, read_mapping
    from raypq.data.store import overlap
    from raypq.stages.training.train import check_settings

    settings = assigned(assignments)
    if config:
        settings = read_mapping(config).below(settings)
    check_settings(method, settings)
    where, columns = where_of(options), columns_of(options)
    options |= {
        "method": method,
        "settings": settings,
        "features": list(options["features"]),
        "unlabelled": list(options["unlabelled"]),
        "cache_bytes": None if cache_gb is None else int(cache_gb * 2**30),
        "where": where,
        "columns": columns,
    }
    asked = job(TrainJob, options)
    overlap.refuse(asked, config=overlap.read_file("--config", config))
    show(api.train(asked).summary)


@click.command()
@click.argument(
    "name", type=click.Choice(["dpq-bits", "dpq-central", "dpq-gini", "gpq-bits", "gpq-terms"])
)
@click.option("--train", required=True, multiple=True, help="Labelled rows; may be repeated.")
@click.option("--test", multiple=True, help="Test rows. [default: a tenth of --train, held out]")
@click.option("--classes", required=True, help="Class table (Parquet).")
@click.option(
    "--seeds", type=click.IntRange(1), default=1, show_default=True, help="Trainings of a variant."
)
@click.option(
    "--queries", type=click.IntRange(1), default=1000, show_default=True, help="Rows that ask."
)
@click.option(
    "--labelled",
    type=click.IntRange(1),
    default=500,
    show_default=True,
    help="Rows of each class that keep their label (gpq).",
)
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="A method setting for every variant, such as epochs=8.",
)
@click.option(
    "--json", "json_file", type=PLACE, help="Write the figures here; what it has is kept."
)
@columns
@cluster
@verb
def ablation(assignments: tuple[str, ...], **options: Any) -> None:
    """Train the variants of a learned quantizer and compare their retrieval.

    \b
    Example:
      raypq ablation gpq-terms --train train/ --test test/ --classes classes.parquet --seeds 3
    """
    from raypq.bench import ablation as bench
    from raypq.config import AblationJob

    where, columns = where_of(options), columns_of(options)
    options |= {
        "train": list(options["train"]),
        "test": list(options["test"]),
        "settings": assigned(assignments),
        "where": where,
        "columns": columns,
    }
    console.emit(bench.run(job(AblationJob, options))[1])
