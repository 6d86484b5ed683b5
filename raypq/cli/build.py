"""Verbs that build: train a model, encode features with it, repack a feature store."""

from __future__ import annotations

from typing import Any

import click

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
    from raypq.data import overlap
    from raypq.stages.train import check_settings

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
