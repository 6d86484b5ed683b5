"""The `raypq repack`, `extract`, `split` and `import-xlsa17` commands."""

from __future__ import annotations

from typing import Any

import click

from raypq.cli.encoding import features
from raypq.cli.options import (
    Number,
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
@features
@click.option("--output", required=True, help="Folder to write; shards keep their names.")
@click.option("--dtype", type=click.Choice(["float32", "float16"]), default="float32")
@click.option("--overwrite", is_flag=True, help="Write over shards that are there already.")
@bad_shard
@columns
@cluster
@verb
def repack(**options: Any) -> None:
    """Rewrite a feature store to the layout that reads fastest (fixed_size_binary).

    \b
    Example:
      raypq repack --features features/ --output fast/
    """
    from raypq import api
    from raypq.config import RepackJob

    where, columns = where_of(options), columns_of(options)
    options |= {"features": list(options["features"]), "where": where, "columns": columns}
    show(api.repack(job(RepackJob, options)))


@click.command("import-xlsa17")
@click.argument("source")
@click.option("--output", required=True, help="Folder for the stores and the class table.")
@verb
def import_xlsa17(**given: Any) -> None:
    """Convert res101.mat and att_splits.mat in the folder SOURCE, with the Proposed Split.

    \b
    Example:
      raypq import-xlsa17 xlsa17/data/CUB --output cub
    """
    from raypq import api
    from raypq.config import ImportXlsa17Job

    show(api.import_xlsa17(job(ImportXlsa17Job, given)))
