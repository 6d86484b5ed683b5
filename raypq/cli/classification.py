"""The `raypq classify`, `evaluate`, `add-classes` and `infer-semantics` commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from raypq import console
from raypq.cli import result_tables
from raypq.cli.job_command import job_command
from raypq.cli.options import show, show_result

if TYPE_CHECKING:
    from raypq.config import AddClassesJob, ClassifyJob, EvaluateJob, InferSemanticsJob


@job_command("raypq.config:ClassifyJob")
def classify(job: ClassifyJob) -> None:
    """Find the best classes of every stored image, from its code and lookup tables.

    \b
    Example:
      raypq classify --codes codes --classes classes.parquet \\
          --candidates unseen --top-k 10 --output predictions
    """
    from raypq import api

    show_result(job, api.classify(job))


@click.group()
def evaluate() -> None:
    """Evaluate predictions, retrieval or a representation against labels.

    \b
    Example:
      raypq evaluate classification --predictions predictions --classes classes.parquet
    """


@job_command("raypq.config:EvaluateJob", "classification", group=evaluate)
@result_tables.json_file
def evaluate_classification(job: EvaluateJob, json_file: str | None) -> None:
    """Measure ZSL and GZSL accuracy, H, hit@k and the seen-unseen curve.

    \b
    Example:
      raypq evaluate classification --predictions predictions --classes classes.parquet
    """
    from raypq import api

    result_tables.output(api.evaluate(job), json_file, result_tables.classification)


@job_command("raypq.config:AddClassesJob", "add-classes")
def add_classes(job: AddClassesJob) -> None:
    """Add classes to a model, from their embeddings; codes stay as they are.

    \b
    Example:
      raypq add-classes --model model --classes new.parquet --output model-tomorrow
    """
    from raypq import api

    show(api.add_classes(job))


@job_command("raypq.config:InferSemanticsJob", "infer-semantics")
def infer_semantics(job: InferSemanticsJob) -> None:
    """Describe images of unknown classes by similar known classes, from their codes.

    \b
    Example:
      raypq infer-semantics --model model --codes codes --classes classes.parquet \\
          --by label --labels Aegypiidae --output semantics
    """
    from raypq import api

    result = api.infer_semantics(job)
    if not console.structured():
        for line in result.pop("table"):
            console.note(line)
    show(result)
