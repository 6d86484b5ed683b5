"""Verbs around the learned quantizers: extract, split and ablation."""

from __future__ import annotations

from typing import Any

import click

from raypq import console
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
@click.option(
    "--images",
    required=True,
    multiple=True,
    help="Parquet folder, file or glob of encoded images; may be repeated.",
)
@click.option(
    "--backbone",
    required=True,
    help="torchvision:NAME, timm:NAME, a TorchScript or ONNX file, or a model directory.",
)
@click.option("--output", required=True, help="Folder to write; shards keep their names.")
@bad_shard
@columns
@cluster
@verb
def extract(**options: Any) -> None:
    """Turn images into features: one feature file for each shard of images.

    \b
    Example:
      raypq extract --images images/ --image-size 224 --backbone torchvision:resnet50 --output F
    """
    from raypq import api
    from raypq.config import ExtractJob

    where, columns = where_of(options), columns_of(options)
    if columns.feature == "feature":
        columns = columns.model_copy(update={"feature": "image"})
    options |= {"images": list(options["images"]), "where": where, "columns": columns}
    show(api.extract(job(ExtractJob, options)))


@click.command()
@click.option("--protocol", type=click.IntRange(1, 2), required=True)
@click.option("--features", required=True, multiple=True, help="Labelled rows; may be repeated.")
@click.option("--test", multiple=True, help="Test rows, if they are stored apart.")
@click.option(
    "--labelled", type=click.IntRange(1), help="Of each class, protocol 1. [default: all]"
)
@click.option(
    "--queries",
    type=click.IntRange(0),
    default=1000,
    show_default=True,
    help="Rows that ask, protocol 1.",
)
@click.option(
    "--share",
    type=Number(0, 1, min_open=True, max_open=True),
    default=0.75,
    show_default=True,
    help="Of the classes whose labels are known, protocol 2.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--output", required=True, help="Folder to write the parts below.")
@columns
@cluster
@verb
def split(**options: Any) -> None:
    """Cut a labelled store into the parts of a semi-supervised retrieval protocol.

    \b
    Protocol 1: labelled/ a few rows of each class, unlabelled/ (the database), queries/.
    Protocol 2: labelled/ of a share of the classes, unlabelled/ (the database), queries/ of others.

    \b
    Example:
      raypq split --protocol 1 --features train/ --test test/ --labelled 500 --output parts
    """
    from raypq import api
    from raypq.config import SplitJob

    where, columns = where_of(options), columns_of(options)
    options |= {
        "features": list(options["features"]),
        "test": list(options["test"]),
        "where": where,
        "columns": columns,
    }
    show(api.split(job(SplitJob, options)))


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
