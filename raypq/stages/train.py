"""Training: pass after pass over the shards, or by gradient; then the model is saved."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from raypq import console, kernels
from raypq.config import TrainJob
from raypq.data.codes import bytes_per_code
from raypq.data.models import check_vacant
from raypq.errors import ShardFailure
from raypq.methods import registry
from raypq.methods.base import Corpus, Model, ReductionMethod, State
from raypq.methods.gradient import GradientMethod
from raypq.stages.crew import Crew, settle
from raypq.stages.drift import baseline_of
from raypq.stages.learn import Fitted, learn
from raypq.stages.passes import Plan, TrainWorker, cache_of, measure, run_pass, update
from raypq.stages.record import RunRecord
from raypq.stages.tune import tune


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A model, and the shards that were left out on request."""

    model: Model
    quarantined: Sequence[ShardFailure]
    summary: dict[str, Any]


def check_settings(method: str, settings: Mapping[str, Any]) -> None:
    """Refuses settings that a method does not have, by the file and line that they come from.

    Raises:
        ConfigError: an unknown method or key, or a value of another kind.
    """
    registry.create(method, settings)


def train(job: TrainJob, crew: Crew) -> Trained:
    """Trains a method and saves its model.

    Raises:
        ConfigError: settings that do not fit each other or the data; a model that is there.
        JobError: shards that could not be used.
    """
    start = time.monotonic()
    crew = run = RunRecord(job, crew)
    check_vacant(job.output, overwrite=job.overwrite)
    # The updates run here; as many threads as a worker has, so that every crew gives equal bits.
    kernels.set_threads(job.where.threads)
    method = registry.create(job.method, job.settings)
    plan = Plan.make(job, method)
    tuned = tune(job, plan, crew) if job.tune else None
    if tuned:
        method = registry.create(job.method, tuned.settings)
    if isinstance(method, ReductionMethod):
        fitted = _reduce(job, method, plan, crew)
    else:
        assert isinstance(method, GradientMethod), "there are two ways to train"
        fitted = learn(job, method, plan, crew)
    model, images = fitted.model, fitted.images
    quarantined = [str(failure) for failure in fitted.failures]
    run.lap("finish")
    record = {**model.record, "images": images, "quarantined": quarantined, "run": run.told()}
    if baseline := baseline_of(fitted.measured, images=images, K=model.K):
        record["baseline"] = baseline.model_dump(mode="json")
    model = replace(model, record={**record, **(tuned.record() if tuned else {})})
    model = _with_classes(model, plan.corpus)
    fingerprint = model.save(job.output)
    fitted.tidy()
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


def _with_classes(model: Model, corpus: Corpus) -> Model:
    """The model with prototypes of the whole class table, where they depend on one another."""
    if not model.joint_classes or corpus.A is None:
        return model
    if corpus.A_other is None:
        return model.with_classes(corpus.names, corpus.A)
    ids = (*corpus.names, *corpus.other_names)
    return model.with_classes(ids, np.concatenate([corpus.A, corpus.A_other]))


def _reduce(job: TrainJob, method: ReductionMethod, plan: Plan, crew: Crew) -> Fitted:
    """Every pass of a method by reduction."""
    tasks = list(plan.tasks)
    failures: list[ShardFailure] = []
    footers = list(plan.failures)
    state = method.begin(plan.corpus)
    args = (method, job.columns, plan.corpus.dx, plan.classes, cache_of(job, crew))
    with crew.hire(TrainWorker, *args, cache=job.cache_bytes or 0) as gang:
        while not state.done:
            label = f"{job.method} {state.phase} {state.iteration}"
            stats, failed = run_pass(gang, tasks, state, label)
            settle(footers + failed, len(tasks) - len(failed), job.on_bad_shard)
            failures += footers + failed
            footers = []
            names = {failure.shard for failure in failed}
            tasks = [task for task in tasks if task.name not in names]
            state = update(method, state, stats, job.where)
            _tell(job.method, state)
        model = method.model(state)
        measured = measure(gang, tasks, model)
    images = sum(task.rows for task in tasks)
    return Fitted(model=model, failures=failures, images=images, measured=measured)


def _tell(name: str, state: State) -> None:
    if state.history:
        note = state.history[-1]
        text = ", ".join(
            f"{key} {value:.6g}" for key, value in note.items() if key != "iteration" and value
        )
        console.say(f"{name} iteration {note['iteration']}: {text}", **note)
