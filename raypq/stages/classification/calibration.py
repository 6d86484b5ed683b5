"""The calibration of scores: γ, which is subtracted from those of seen classes."""

from __future__ import annotations

import math
from collections.abc import Iterable

from raypq import console
from raypq.config import ClassifyJob
from raypq.config.explain import shown
from raypq.errors import ModelError
from raypq.methods.base import Model
from raypq.stages.stores import model_store


def gamma_of(job: ClassifyJob, model: Model, path: str, *, compete: bool, required: bool) -> float:
    """γ of a model: the number that the job names, or the model's own. If the job names none, it is
    0 where the model has none, where seen and unseen classes do not compete, and where the job
    compares by another metric than the one that γ was chosen for.

    Args:
        path: of the model, for errors. compete: whether there are candidates of both groups.
        required: whether the model must have a calibration, if the job asks for the models' own.

    Raises:
        ModelError: the model has none, or one that is no finite number.
    """
    if job.no_calibration:
        return 0.0
    if isinstance(job.calibration, float | int):
        return float(job.calibration)
    calibration = model.record.get(model_store.CALIBRATION)
    by_default = job.calibration is None
    same_metric = job.metric in (None, model.class_metric)
    if by_default and (calibration is None or not compete or not same_metric):
        return 0.0
    if calibration is None and not required:
        console.warn(
            f"{path}: no calibration from raypq train; the shards that it encoded are "
            "classified without one until they are encoded anew"
        )
        return 0.0
    if calibration is None:
        raise ModelError(path, expected="a calibration from raypq train", found="none")
    plain = isinstance(calibration, int | float) and not isinstance(calibration, bool)
    if not plain or not math.isfinite(calibration):
        raise ModelError(
            f"{path}, key 'record.{model_store.CALIBRATION}'",
            expected="a finite number from raypq train",
            found=f"{shown(calibration)}; name one (--calibration, calibration in a config), or "
            "train again",
        )
    return float(calibration)


def say_calibration(job: ClassifyJob, gammas: Iterable[float]) -> None:
    """Says which calibration is applied, where the job does not name one."""
    own = sorted({*gammas} - {0.0})
    if job.calibration is None and own:
        numbers = ", ".join(f"{gamma:.4g}" for gamma in own)
        console.say(
            f"{job.output}: calibrated by the model: {numbers} is subtracted from the scores of "
            "seen classes; --no-calibration (no_calibration: true) leaves scores as they are"
        )
