"""Calibration: γ, which is subtracted from the scores of seen classes, from held-out classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from raypq import console
from raypq.config import TrainJob
from raypq.errors import ConfigError
from raypq.execution.executor import Executor
from raypq.execution.run_record import RunRecord
from raypq.methods import registry
from raypq.methods.base import ReductionMethod, TrainingSetInfo
from raypq.stages.training.fit_result import FitResult
from raypq.stages.training.held_out_classes import (
    FEWEST_CLASSES,
    MOST_ROWS,
    Trial,
    TrialScores,
    best_gamma,
    competition,
    open_trials,
    seed_of,
    splits_of,
)

if TYPE_CHECKING:
    from raypq.stages.training.dataset import TrainingPlan

_SHARE = 3  # rows of training for each row of the sample, which bounds the time
_ROWS_OF_CLASS = 2  # of the sample for each training class, at least


def calibrate(
    job: TrainJob, plan: TrainingPlan, fitted: FitResult, executor: Executor, record: RunRecord
) -> float | None:
    """γ of a model, by leaving some of its classes out; or of the job's settings, by training
    without some of the classes on a part of the rows. None for models without class embeddings, and
    (with a warning) where the rows are too few for it."""
    cls, info, model = registry.find(job.method), plan.dataset_info, fitted.model
    if model.da is None:
        return None
    if model.stores_classes:
        return _of_codes_of_classes(fitted, info, seed_of(job))
    rows = min(MOST_ROWS, info.N // _SHARE)
    if info.L < FEWEST_CLASSES or rows < _ROWS_OF_CLASS * info.L:
        _warn(f"{info.N:,} rows of {info.L} training classes are too few for it")
        return None
    splits = splits_of(info.L) if issubclass(cls, ReductionMethod) else 1
    try:
        with open_trials(job, plan, executor, record, "calibrate", most_rows=rows) as trials:
            scores = trials.run([Trial(settings={}, split=split) for split in range(splits)])
    except ConfigError as error:  # settings that only fit more rows or classes
        _warn(str(error))
        return None
    return _best(scores)


def _of_codes_of_classes(fitted: FitResult, info: TrainingSetInfo, seed: int) -> float | None:
    """γ by the rows that were held out, which are some where unseen classes compete."""
    if not info.compete:
        return None
    if fitted.held_out is None or not len(fitted.held_out[0]):
        _warn(f"{info.N:,} rows of {info.L} training classes are too few to hold some out")
        return None
    X, y = fitted.held_out
    P = fitted.model.class_probabilities(fitted.model.encode(X))
    return _best(competition([P], y, info, seed))


def _best(scores: Sequence[TrialScores]) -> float:
    gamma, H = best_gamma(scores)
    console.say(f"calibrated by {gamma:.4g} on held-out training classes: H {H:.3f} there")
    return gamma


def _warn(why: str) -> None:
    console.warn(
        f"no calibration was chosen: {why}; scores of seen classes will be too high where unseen "
        "classes compete (classify --calibration, calibration, sets a number)"
    )
