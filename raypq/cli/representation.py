"""The `raypq evaluate fewshot` and `evaluate clusterability` commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from raypq.cli import result_tables
from raypq.cli.classification import evaluate
from raypq.cli.options import (
    Command,
    columns,
    columns_of,
    job,
    options,
    verb,
)


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
        result_tables.json_file,
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
    result_tables.check(asked, json_file)
    result = api.fewshot(asked)
    result_tables.tell(result, json_file, result_tables.fewshot)


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
    result_tables.check(asked, json_file)
    result = api.clusterability(asked)
    result_tables.tell(result, json_file, result_tables.clusterability)
