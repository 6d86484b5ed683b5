"""The `raypq evaluate fewshot` and `evaluate clusterability` commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raypq.cli import result_tables
from raypq.cli.classification import evaluate
from raypq.cli.job_command import job_command

if TYPE_CHECKING:
    from raypq.config import ClusterabilityJob, FewShotJob


@job_command("raypq.config:FewShotJob", "fewshot", group=evaluate)
@result_tables.json_file
def fewshot(job: FewShotJob, json_file: str | None) -> None:
    """Measure the accuracy of classifiers trained on a few examples, over many episodes.

    \b
    Example:
      raypq evaluate fewshot --model model --features test/ --classes classes.parquet
    """
    from raypq import api

    result_tables.output(api.fewshot(job), json_file, result_tables.fewshot)


@job_command("raypq.config:ClusterabilityJob", "clusterability", group=evaluate)
@result_tables.json_file
def clusterability(job: ClusterabilityJob, json_file: str | None) -> None:
    """Measure the mutual information of k-means clusters and labels.

    \b
    Example:
      raypq evaluate clusterability --model model --features test/
    """
    from raypq import api

    result_tables.output(api.clusterability(job), json_file, result_tables.clusterability)
