"""The `raypq train` and `ablation` commands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from raypq import console
from raypq.cli.job_command import JobCommand, job_command
from raypq.cli.options import show_result

if TYPE_CHECKING:
    from raypq.config import AblationJob, TrainJob
    from raypq.config.reading import FromFile


class _TrainCommand(JobCommand):
    """The command with the settings of a method in it."""

    def read_config(self, path: str, given: Mapping[tuple[str, ...], Any]) -> FromFile:
        """The settings in a file of a whole job, or of the method alone (``M: 50``)."""
        from raypq.stages.training.train import setting_names

        values = super().read_config(path, given)
        of_method = setting_names(given.get(("method",), ""))
        of_job = set(self.settings.model_fields) - of_method
        return values if not of_method or of_job & set(values) else values.below("settings")

    def check(self, values: FromFile) -> None:
        """Checks the settings of the method, whose errors name their lines too."""
        from raypq.stages.training.train import check_settings

        if isinstance(values.get("method"), str) and isinstance(values.get("settings", {}), dict):
            check_settings(values["method"], values.section("settings"))


@job_command("raypq.config:TrainJob", cls=_TrainCommand)
def train(job: TrainJob) -> None:
    """Train a model by METHOD and save it.

    METHOD is pq, opq, pqzsl, vq, dpq, gpq, psr, clusterable, eszsl or sae; or linear, which learns
    a classifier over the codes of a model that was trained by one of them.

    With METHOD, --config may also be a file of the method's settings alone; --set overrides it.

    \b
    Example:
      raypq train pqzsl --features train/ --classes classes.parquet --output model --set M=37
      raypq train linear --codes codes --classes classes.parquet --output head
    """
    from raypq import api

    show_result(job, api.train(job))


@job_command("raypq.config:AblationJob")
def ablation(job: AblationJob) -> None:
    """Train the variants of a learned quantizer and compare their retrieval.

    NAME is dpq-bits, dpq-central, dpq-gini, gpq-bits or gpq-terms.

    \b
    Example:
      raypq ablation gpq-terms --train train/ --test test/ --classes classes.parquet --seeds 3
    """
    from raypq.bench import ablation as bench

    console.emit_text(bench.run(job)[1])
