"""Train linear: a linear head over the codes of any model.

The result is the same model, with the same fingerprint, whose classes are the head's. So a store
is classified anew by a new head, and its codes stay.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from raypq import console, kernels
from raypq.config import TrainJob
from raypq.data.id_list import unknown_ids_message
from raypq.data.model_files import check_vacant
from raypq.errors import ShardFailure
from raypq.execution.executor import Executor, WorkerPool
from raypq.execution.run_record import RunRecord
from raypq.methods.base import Model, Stats
from raypq.methods.support import linear_head
from raypq.methods.support.linear_head import LinearSettings, Weights
from raypq.stages.stores import model_store
from raypq.stages.stores.shard_task import ShardTask
from raypq.stages.training.fit_result import Trained
from raypq.stages.training.labelled_codes import HeadWorker, LabelledCodes, check_counts
from raypq.stages.training.reduction import cache_of, merged
from raypq.stages.training.shard_groups import (
    ShardGroup,
    accumulate_group,
    grouped,
    without,
)

METHOD = "linear"

Call = Callable[..., Stats]


class _Passes:
    """Passes over the shards of a store; shards that fail one are left out of the next ones.

    Attributes:
        failures: of all passes. count: passes so far.
    """

    def __init__(
        self,
        pool: WorkerPool[HeadWorker],
        groups: Sequence[ShardGroup[ShardTask]],
        on_bad_shard: str,
    ) -> None:
        self._pool, self._groups, self._on_bad_shard = pool, groups, on_bad_shard
        self.failures: list[ShardFailure] = []
        self.count = 0

    def run(self, call: Call, *shared: Any) -> Stats:
        """The sums of one pass, merged in the order of shards.

        Raises:
            JobError: shards failed, unless they are quarantined.
        """
        failures: list[ShardFailure] = []
        stats = merged(
            self._pool.map(accumulate_group, self._groups, call, *shared, ordered=True),
            self._groups,
            label=f"{METHOD} {self.count}",
            on_bad_shard=self._on_bad_shard,
            failures=failures,
        )
        self._groups = without(self._groups, {failure.shard for failure in failures})
        self.failures += failures
        self.count += 1
        return stats


def train_head(job: TrainJob, executor: Executor) -> Trained:
    """Learns a head from the labelled codes of a store, and saves the model with it.

    Raises:
        ConfigError: settings that do not fit the data, or a model exists at the output.
        InputError: no labels, labels of other classes, or a class without rows.
        ModelError: codes of several models, or of another model than the job names.
        JobError: some shards could not be used.
    """
    start = time.monotonic()
    run_record = RunRecord(job, executor)
    check_vacant(job.output, overwrite=job.overwrite)
    # As for all reductions: the driver computes with the threads of a worker.
    kernels.set_threads(job.where.threads)
    settings = LinearSettings.parse(job.settings, origin=f"{METHOD} settings")
    data = LabelledCodes.open(job)
    args = (data.model, data.classes, data.labels, cache_of(job, executor))
    history: list[Mapping[str, Any]] = []
    with (
        executor.start_workers(
            HeadWorker, *args, stage="train", cache=job.cache_bytes or 0
        ) as pool,
        run_record.observe(pool),
    ):
        passes = _Passes(pool, grouped(data.tasks, data.rows), job.on_bad_shard)
        moments = passes.run(HeadWorker.moments, settings.loss)
        check_counts(job, data.classes, moments.sums)
        counts = _counts(job, data, moments)
        weights = _fit(passes, moments, settings, history)
        measured = _measure(passes, weights, settings)
    run_record.lap("finish")
    quarantined = [str(failure) for failure in passes.failures]
    head = {
        "settings": settings.model_dump(mode="json"),
        "classes": len(data.classes.names),
        **counts,
        **{key: value / counts["images"] for key, value in measured.items()},
        "passes": passes.count,
    }
    details = {"history": history, "quarantined": quarantined, "run": run_record.summary()}
    model = _with_head(data, weights, {**head, **details})
    fingerprint = model.save(job.output)
    seconds = time.monotonic() - start
    console.say(
        f"trained {METHOD} on {counts['images']:,} images of {head['classes']:,} classes in "
        f"{seconds:.1f} s: {job.output}"
    )
    summary = {
        "method": METHOD,
        "model": job.output,
        "of": data.model.method,
        "fingerprint": fingerprint,
        "codes": job.codes,
        "version": data.version,
        **head,
        "seconds": seconds,
        "quarantined": quarantined,
    }
    return Trained(model=model, quarantined=passes.failures, summary=summary)


def _fit(
    passes: _Passes,
    moments: Stats,
    settings: LinearSettings,
    history: list[Mapping[str, Any]],
) -> Weights:
    """The weights of shifted rows; ``history`` is extended by an entry for each pass."""
    if settings.loss == "ridge":
        return linear_head.fit_ridge(moments, settings)

    from raypq.methods.support import lbfgs  # here, since it imports torch

    kernels.apply_thread_limit()

    def run_pass(weights: Weights) -> Stats:
        return passes.run(HeadWorker.softmax, weights, True)

    def log(entry: Mapping[str, Any]) -> None:
        history.append(entry)
        text = ", ".join(f"{key} {value:.6g}" for key, value in entry.items() if key != "iteration")
        console.say(f"{METHOD} iteration {entry['iteration']}: {text}", **entry)

    return lbfgs.fit_softmax(moments, settings, run_pass, log)


def _measure(passes: _Passes, weights: Weights, settings: LinearSettings) -> dict[str, float]:
    """Sums over all rows: the loss, and how many rows have their class first (``accuracy``)."""
    if settings.loss == "ridge":
        sums = passes.run(HeadWorker.squares, weights).sums
    else:
        sums = passes.run(HeadWorker.softmax, weights, False).sums
    return {"loss": float(sums["loss"]), "accuracy": float(sums["right"])}


def _counts(job: TrainJob, data: LabelledCodes, moments: Stats) -> dict[str, Any]:
    """Numbers of rows, as the summary names them; warns of labels of unknown ids."""
    images = int(moments.sums["n"].sum())
    counts: dict[str, Any] = {
        "images": images,
        "without_label": int(moments.sums["rows"]) - images,
    }
    if data.others:
        counts["shards_of_other_models"] = data.others
    if data.labels is not None:
        ids = data.labels.labels.ids
        unknown = np.ones(len(ids), bool)
        unknown[np.concatenate(moments.rows["matched"])] = False
        counts["unknown_ids"] = int(unknown.sum())
        if unknown.any():
            console.warn(
                unknown_ids_message(
                    data.labels.labels.uri, ids.filter(unknown), len(ids), str(job.codes)
                ),
                ids=counts["unknown_ids"],
            )
    return counts


def _with_head(data: LabelledCodes, weights: Weights, head: Mapping[str, Any]) -> Model:
    """The model with the head, and the record of its training. A calibration of other scores is
    left out."""
    model = data.model
    final = linear_head.unshifted(weights, linear_head.shift_of(model))
    extended = model.with_head(data.classes.names, final.W, final.bias)
    kept = {key: value for key, value in model.record.items() if key != model_store.CALIBRATION}
    return extended.with_record({**kept, "head": dict(head)}, extended.layer)
