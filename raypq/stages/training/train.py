"""Train: fit a method and save its model."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from raypq import console, kernels
from raypq.config import TrainJob, UserSettings
from raypq.data.codes import bytes_per_code
from raypq.data.model_files import check_vacant
from raypq.errors import ShardFailure
from raypq.execution.executor import Executor
from raypq.execution.run_record import RunRecord
from raypq.methods import registry
from raypq.methods.base import Method, Model, ReductionMethod, State, Stats, TrainingSetInfo
from raypq.methods.support.linear_head import LinearSettings
from raypq.metrics.drift import baseline_of
from raypq.stages.training.calibrate import calibrate
from raypq.stages.training.dataset import TrainingPlan
from raypq.stages.training.expectations import warn_of
from raypq.stages.training.fit_result import FitResult, Trained
from raypq.stages.training.job_checks import check_inputs
from raypq.stages.training.linear import METHOD as LINEAR
from raypq.stages.training.linear import train_head
from raypq.stages.training.reduction import TrainWorker, cache_of, iterate, measure, run_pass
from raypq.stages.training.shard_groups import grouped, without
from raypq.stages.training.tune import tune


def setting_names(method: str) -> frozenset[str]:
    """The names of a method's settings; none for an unknown method."""
    if method not in (LINEAR, *registry.METHODS):
        return frozenset()
    return frozenset(_settings_class(method).model_fields)


def check_settings(method: str, settings: Mapping[str, Any]) -> None:
    """Checks the settings of a method.

    Raises:
        ConfigError: an unknown method or key, or a value of the wrong type; names the file and
            line that it comes from.
    """
    _settings_class(method).parse(settings, origin=f"{method} settings")


def _settings_class(method: str) -> type[UserSettings]:
    if method == LINEAR:
        return LinearSettings
    return registry.find(method, others=[LINEAR]).settings_class


def train(job: TrainJob, executor: Executor) -> Trained:
    """Trains a method and saves its model.

    Raises:
        ConfigError: settings that contradict each other or do not fit the data, or a model exists
            at the output.
        JobError: some shards could not be used.
    """
    check_settings(job.method, job.settings)
    check_inputs(job)
    return train_head(job, executor) if job.method == LINEAR else _train_method(job, executor)


def _train_method(job: TrainJob, executor: Executor) -> Trained:
    start = time.monotonic()
    run_record = RunRecord(job, executor)
    check_vacant(job.output, overwrite=job.overwrite)
    # Updates run in this process with the threads of a worker, so all executors give equal bits.
    kernels.set_threads(job.where.threads)
    method = registry.create(job.method, job.settings)
    plan = TrainingPlan.make(job, method)
    if plan.dataset_info.aligned is not None:
        method = registry.create(job.method, {**(method.aligned_defaults or {}), **job.settings})
    warn_of(plan, method)
    if job.tune and isinstance(method, ReductionMethod):
        method.begin(plan.dataset_info)  # refuses settings before the trials
    tuned = tune(job, plan, executor, run_record) if job.tune else None
    if tuned:
        method = registry.create(job.method, tuned.settings)
    fitted = _fit(job, method, plan, executor, run_record)
    model, images = fitted.model, fitted.images
    quarantined = [str(failure) for failure in fitted.failures]
    run_record.lap("finish")
    run = run_record.summary()
    record = {**model.record, "images": images, "quarantined": quarantined, "run": run}
    # Of codes of classes, the error of training rows is no measure (``known_baseline``).
    fitted_rows = 0 if model.stores_classes else images
    if baseline := baseline_of(fitted.measured, images=fitted_rows, K=model.K):
        record["baseline"] = baseline.model_dump(mode="json")
    if tuned is None and job.calibrate:
        gamma = calibrate(job, plan.without(fitted.failures), fitted, executor, run_record)
        record |= {} if gamma is None else {"calibration": gamma}
    model = replace(model, record={**record, **(tuned.record() if tuned else {})})
    encoder = plan.classes.table.encoder if plan.classes and model.da is not None else None
    model = model.bound_to(plan.backbone, encoder, where=job.output)
    model = _with_classes(model, plan.dataset_info)
    fingerprint = model.save(job.output)
    fitted.clean_up()
    seconds = time.monotonic() - start
    console.say(f"trained {job.method} on {images:,} images in {seconds:.1f} s: {job.output}")
    width = bytes_per_code(model.M, model.K)
    summary = {
        "method": job.method,
        "model": job.output,
        "fingerprint": fingerprint,
        "images": images,
        "dx": model.dx,
        "M": model.M,
        "K": model.K,
        "bytes_per_image": width,
        "compression": 4 * model.dx / width,
        "settings": model.settings.model_dump(mode="json"),
        "calibration": model.record.get("calibration"),
        "seconds": seconds,
        "quarantined": quarantined,
    }
    return Trained(model=model, quarantined=fitted.failures, summary=summary)


def _with_classes(model: Model, dataset_info: TrainingSetInfo) -> Model:
    """The model with prototypes of the whole class table, if they depend on one another."""
    if not model.joint_classes or model.classes_by_id or dataset_info.A is None:
        return model  # codes of classes: M times as many values as there are weights
    ids, E = dataset_info.names, dataset_info.A
    if dataset_info.A_other is not None:
        ids = (*ids, *dataset_info.other_names)
        E = np.concatenate([E, dataset_info.A_other])
    return model.with_classes(ids, E)


def _fit(
    job: TrainJob, method: Method, plan: TrainingPlan, executor: Executor, record: RunRecord
) -> FitResult:
    """Trains a method of either kind."""
    if isinstance(method, ReductionMethod):
        return _fit_by_reduction(job, method, plan, executor, record)
    # Here, since these import torch.
    from raypq.methods.gradient import GradientMethod
    from raypq.stages.training.gradient import fit_gradient

    assert isinstance(method, GradientMethod), "a method trains by reduction or by gradient"
    return fit_gradient(job, method, plan, executor, record)


def _fit_by_reduction(
    job: TrainJob,
    method: ReductionMethod,
    plan: TrainingPlan,
    executor: Executor,
    record: RunRecord,
) -> FitResult:
    """Trains a method by reduction: passes over the shards until it is done."""
    groups = grouped(plan.tasks, [task.rows for task in plan.tasks])
    left_out: list[ShardFailure] = []
    failures = list(plan.failures)  # that no pass has reported

    def pass_over_good_shards(state: State) -> Stats:
        nonlocal groups, failures
        label = f"{job.method} {state.phase} {state.iteration}"
        stats = run_pass(
            pool, groups, state, label, on_bad_shard=job.on_bad_shard, failures=failures
        )
        left_out.extend(failures)
        groups, failures = without(groups, {failure.shard for failure in failures}), []
        return stats

    args = (
        method, job.columns, plan.dataset_info.dx, plan.classes, cache_of(job, executor),
        job.where.device,
    )  # fmt: skip
    with (
        executor.start_workers(
            TrainWorker, *args, stage="train", cache=job.cache_bytes or 0
        ) as pool,
        record.observe(pool),
    ):
        state = iterate(
            method,
            method.begin(plan.dataset_info),
            pass_over_good_shards,
            threads=job.where.threads * job.where.workers,
            on_update=lambda state: _log(job.method, state),
        )
        model = method.model(state)
        tasks = [task for group in groups for task in group.tasks]
        measured = measure(pool, tasks, model)
    images = sum(task.rows for task in tasks)
    return FitResult(model=model, failures=left_out, images=images, measured=measured)


def _log(name: str, state: State) -> None:
    if state.history:
        latest = state.history[-1]
        text = ", ".join(
            f"{key} {value:.6g}" for key, value in latest.items() if key != "iteration" and value
        )
        console.say(f"{name} iteration {latest['iteration']}: {text}", **latest)
