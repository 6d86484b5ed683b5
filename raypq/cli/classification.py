"""The `raypq classify`, `evaluate`, `add-classes` and `infer-semantics` commands."""

from __future__ import annotations

from typing import Any

import click

from raypq import console
from raypq.cli import result_tables
from raypq.cli.options import (
    Number,
    bad_shard,
    cluster,
    columns,
    columns_of,
    job,
    show,
    told,
    unknown_labels,
    verb,
    where_of,
)


@click.command()
@click.option(
    "--model",
    help="Model directory; needed for features. With codes: refuse those of another model. "
    "[default: the models that the code store carries, each for its own shards]",
)
@click.option("--codes", help="Code store.")
@click.option(
    "--version", type=click.IntRange(1), help="Version of the code store. [default: latest]"
)
@click.option(
    "--features", multiple=True, help="Instead of codes: score features exactly, uncompressed."
)
@click.option("--classes", required=True, help="Class table (Parquet).")
@click.option(
    "--candidates",
    default="all",
    show_default=True,
    help="all, seen, unseen, 2-hops, 3-hops, most-N, least-N, a file, or several joined by +.",
)
@click.option(
    "--top-k", type=click.IntRange(1), default=10, show_default=True, help="Classes of an image."
)
@click.option("--metric", type=click.Choice(["l2", "cosine", "dot"]), help="[default: the model's]")
@click.option(
    "--calibration",
    default="0",
    show_default=True,
    help="Taken off seen classes' scores: a number, or 'model'.",
)
@unknown_labels
@click.option("--output", required=True, help="Prediction store to write a version of.")
@bad_shard
@columns
@cluster
@verb
def classify(**options: Any) -> None:
    """Classify stored codes: the best classes of every image, from lookup tables.

    \b
    Example:
      raypq classify --codes codes --classes classes.parquet \\
          --candidates unseen --top-k 10 --output predictions
    """
    from raypq import api
    from raypq.config import ClassifyJob

    where, columns = where_of(options), columns_of(options)
    options |= {"features": list(options["features"]) or None, "where": where, "columns": columns}
    version = api.classify(job(ClassifyJob, options))
    result = version.summary["result"]
    few = {key: result[key] for key in ("accuracy", "unknown_labels") if key in result}
    show(told(version, options["output"]) | few)


@click.group()
def evaluate() -> None:
    """Compare results with labels.

    \b
    Example:
      raypq evaluate classification --predictions predictions --classes classes.parquet
    """


@evaluate.command("classification")
@click.option("--predictions", required=True, help="Prediction store.")
@click.option("--version", type=click.IntRange(1), help="Its version. [default: latest]")
@click.option("--classes", required=True, help="Class table (Parquet).")
@click.option(
    "--split",
    default="all",
    show_default=True,
    help="Judge only images of these classes (as --candidates).",
)
@click.option(
    "--calibration", type=Number(), help="For calibrated stacking. [default: the model's]"
)
@unknown_labels
@result_tables.json_file
@cluster
@verb
def evaluate_classification(json_file: str | None, **options: Any) -> None:
    """ZSL and GZSL accuracy, H, hit@k and the seen-unseen curve of a prediction store.

    \b
    Example:
      raypq evaluate classification --predictions predictions --classes classes.parquet
    """
    from raypq import api
    from raypq.config import EvaluateJob

    options["where"] = where_of(options)
    asked = job(EvaluateJob, options)
    result_tables.check(asked, json_file)
    result = api.evaluate(asked)
    result_tables.tell(result, json_file, result_tables.classification)


@click.command("add-classes")
@click.option("--model", required=True, help="Model directory.")
@click.option("--classes", required=True, help="Class table (Parquet) of the classes to add.")
@click.option("--output", required=True, help="Model directory to write.")
@click.option("--overwrite", is_flag=True, help="Replace a model that is there already.")
@click.option("--workers", type=click.IntRange(1), help="CPU threads. [default: CPU cores]")
@verb
def add_classes(workers: int | None, **given: Any) -> None:
    """Extend a model by new classes, from their embeddings. Codes stay as they are.

    \b
    Example:
      raypq add-classes --model model --classes new.parquet --output model-tomorrow
    """
    from raypq import api
    from raypq.config import AddClassesJob, ClusterSettings

    where = ClusterSettings(cluster="none", **({"workers": workers} if workers else {}))
    show(api.add_classes(job(AddClassesJob, given | {"where": where})))


@click.command("infer-semantics")
@click.option("--model", required=True, help="Model directory.")
@click.option("--codes", required=True, help="Code store.")
@click.option(
    "--version", type=click.IntRange(1), help="Version of the code store. [default: latest]"
)
@click.option("--classes", required=True, help="Class table (Parquet) of the known classes.")
@click.option("--candidates", default="all", show_default=True, help="Which of them.")
@click.option(
    "--by",
    type=click.Choice(["image", "label"]),
    default="image",
    show_default=True,
    help="Tell it of every image, or of all images of a label together.",
)
@click.option("--labels", multiple=True, help="Only images of this label; may be repeated.")
@click.option(
    "--top-k", type=click.IntRange(1), default=3, show_default=True, help="Classes of an image."
)
@click.option(
    "--tau",
    type=Number(-1, 1),
    default=0.0,
    show_default=True,
    help="Similar from this cosine on.",
)
@click.option("--output", required=True, help="Folder to write Parquet files to.")
@bad_shard
@cluster
@verb
def infer_semantics(**given: Any) -> None:
    """Tell what images are like whose class has no embedding, from their codes.

    \b
    Example:
      raypq infer-semantics --model model --codes codes --classes classes.parquet \\
          --by label --labels Aegypiidae --output semantics
    """
    from raypq import api
    from raypq.config import InferSemanticsJob

    given["where"] = where_of(given)
    result = api.infer_semantics(job(InferSemanticsJob, given))
    for line in result.pop("table"):
        console.note(line)
    show(result)
