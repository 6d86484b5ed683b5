"""Settings of a training job that its method does not use, which are refused."""

from __future__ import annotations

from raypq.config import Columns, TrainJob
from raypq.errors import ConfigError
from raypq.stages.training.linear import METHOD as LINEAR

_OF_CODES = ("codes", "version", "model", "labels")


def check_inputs(job: TrainJob) -> None:
    """Refuses what the method does not use, and requires its input.

    Raises:
        ConfigError: naming the setting.
    """
    if job.method == LINEAR:
        _check_linear(job)
        return
    for name in _OF_CODES:
        if getattr(job, name) is not None:
            raise ConfigError(
                f"{name} (--{name}): {job.method} learns from features (--features, features); "
                f"only {LINEAR} learns from codes"
            )
    if not job.features:
        raise ConfigError(
            f"features: {job.method} learns from features; name a feature store (--features)"
        )


def _check_linear(job: TrainJob) -> None:
    if job.features or job.unlabelled:
        name = "features" if job.features else "unlabelled"
        raise ConfigError(
            f"{name} (--{name}): {LINEAR} learns from codes; encode the features with a model of "
            "another method (raypq encode), and name the code store (--codes, codes)"
        )
    if job.tune:
        raise ConfigError(f"tune (--tune): {LINEAR} has no settings to tune")
    for name, what in (("codes", "code store"), ("classes", "class table")):
        if getattr(job, name) is None:
            raise ConfigError(f"{name}: {LINEAR} needs a {what}; name it (--{name})")
    if job.where.device != "cpu" or job.where.gpus_per_worker:
        raise ConfigError(
            f"where.device, where.gpus_per_worker: {LINEAR} computes on CPUs; leave --device "
            "(device) and --gpus-per-worker (gpus_per_worker) out"
        )
    used = {"id", "label"} if job.labels is not None else set()
    default = Columns()
    for name in sorted(set(Columns.model_fields) - used):
        if getattr(job.columns, name) != getattr(default, name):
            raise ConfigError(
                f"columns.{name}: {LINEAR} reads code stores, whose columns have fixed names, and "
                f"the columns id and label of a file of labels; leave it out, found "
                f"{getattr(job.columns, name)!r}"
            )
