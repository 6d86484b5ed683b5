"""Verbs of zero-shot models: add classes, infer semantics, probe a space, import benchmarks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from raypq import console
from raypq.cli import figures
from raypq.cli.answer import evaluate
from raypq.cli.options import (
    Command,
    Number,
    bad_shard,
    cluster,
    columns,
    columns_of,
    job,
    options,
    show,
    verb,
    where_of,
)


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


def _space(split: str) -> Callable[[Command], Command]:
    return options(
        click.option("--features", required=True, multiple=True, help="Labelled feature store."),
        click.option("--model", help="Model directory. [default: features as they are]"),
        click.option("--classes", help="Class table, to choose classes by --split."),
        click.option("--split", default=split, show_default=True, help="As --candidates."),
        click.option(
            "--space",
            type=click.Choice(["raw", "mapped", "codes"]),
            help="Features as they are, as the model maps them, or as its codes give them back. "
            "[default: mapped, or raw without a model]",
        ),
        click.option("--seed", type=click.IntRange(0), default=0, show_default=True),
        figures.json_file,
    )


def _probed(given: dict[str, Any]) -> dict[str, Any]:
    space = given["space"] or ("mapped" if given["model"] else "raw")
    named = columns_of(given)
    return given | {"features": list(given["features"]), "space": space, "columns": named}


@evaluate.command("fewshot")
@_space("unseen")
@click.option(
    "--ways", type=click.IntRange(2), default=5, show_default=True, help="Classes of an episode."
)
@click.option(
    "--shots",
    type=click.IntRange(1),
    multiple=True,
    default=(1, 5),
    show_default=True,
    help="Examples of each class; may be repeated.",
)
@click.option(
    "--queries",
    type=click.IntRange(1),
    default=15,
    show_default=True,
    help="Other images of each class, to recognise.",
)
@click.option("--episodes", type=click.IntRange(1), default=600, show_default=True)
@columns
@verb
def fewshot(json_file: str | None, **given: Any) -> None:
    """Accuracy of classifiers trained on a few examples, mean over episodes.

    \b
    Example:
      raypq evaluate fewshot --model model --features test/ --classes classes.parquet
    """
    from raypq import api
    from raypq.config import FewShotJob

    asked = job(FewShotJob, _probed(given))
    figures.check(asked, json_file)
    result = api.fewshot(asked)
    figures.tell(result, json_file, figures.fewshot)


@evaluate.command("clusterability")
@_space("all")
@click.option(
    "--restarts", type=click.IntRange(1), default=5, show_default=True, help="Of k-means."
)
@columns
@verb
def clusterability(json_file: str | None, **given: Any) -> None:
    """Mutual information of k-means clusters with the labels.

    \b
    Example:
      raypq evaluate clusterability --model model --features test/
    """
    from raypq import api
    from raypq.config import ClusterabilityJob

    asked = job(ClusterabilityJob, _probed(given))
    figures.check(asked, json_file)
    result = api.clusterability(asked)
    figures.tell(result, json_file, figures.clusterability)


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
