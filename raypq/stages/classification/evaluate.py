"""Evaluate predictions against labels: ZSL, GZSL, hit@k and calibrated stacking.

All accuracies are means over classes; ``…_image_mean`` is the mean over images. *Calibrated
stacking* (Chao et al., ECCV 2016) subtracts a constant γ from the scores of seen classes; values of
γ give the seen-unseen curve. Uncalibrated H mostly measures the bias to seen classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from raypq.config import EvaluateJob
from raypq.data import predictions
from raypq.data.classes import ClassTable
from raypq.data.predictions import PredictionBatch
from raypq.data.store import snapshot, snapshot_summary
from raypq.data.store.snapshot import Snapshot
from raypq.errors import InputError
from raypq.execution.executor import Executor, WorkerPool, completed
from raypq.execution.run_record import RunRecord
from raypq.metrics.accuracy import ClassCounts, class_mean, harmonic
from raypq.metrics.confusion import Confusions
from raypq.stages.classification.unknown_labels import check_labels
from raypq.stages.stores.shard_task import ShardTask, stored_shards

CURVE_POINTS = 2048  # values of γ on the seen-unseen curve
_LIMBS, _BITS = 3, 26  # of fixed-point numbers with 78 bits after the point


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """The seen-unseen curve that the second pass computes.

    Attributes:
        edges: values of γ [P], ascending.
        share: 1 / images of each class, 0 outside the split, as limbs of ``_BITS`` bits each
            [_LIMBS, T]. Sums of integers do not depend on their order, so shards are added as they
            arrive.
        gammas: the γ of each model for which accuracy is counted exactly.
    """

    edges: NDArray[np.float64]
    share: NDArray[np.int64]
    gammas: Mapping[str, float] | None

    @classmethod
    def of(
        cls,
        counts: ClassCounts,
        chosen: NDArray[np.bool_],
        margin_range: NDArray[np.float64],
        gammas: Mapping[str, float] | None,
    ) -> Self:
        """The curve of the classes ``chosen`` [T], over margins from lowest to highest [2]."""
        share = np.zeros((_LIMBS, len(chosen)), np.int64)
        for t in np.flatnonzero(chosen & (counts.images > 0)):
            share[:, t] = share_limbs(int(counts.images[t]))
        low, high = margin_range
        return cls(edges=np.linspace(low, high, CURVE_POINTS), share=share, gammas=gammas)


def share_limbs(images: int) -> list[int]:
    """1 / images, rounded to ``_LIMBS`` · ``_BITS`` bits after the point; highest limb first."""
    unit = 1 << _LIMBS * _BITS
    share = (unit + images // 2) // images
    low = [share >> _BITS * limb & (1 << _BITS) - 1 for limb in range(_LIMBS - 1)]
    return [share >> _BITS * (_LIMBS - 1), *reversed(low)]


def value_of_limbs(limbs: NDArray[np.int64]) -> NDArray[np.float64]:
    """The values [n] of sums of limbs [_LIMBS, n]."""
    unit = 1 << _LIMBS * _BITS
    exact = [
        sum(int(limb) << _BITS * position for position, limb in enumerate(reversed(column)))
        for column in limbs.T
    ]
    return np.array([value / unit for value in exact])


@dataclass(frozen=True, kw_only=True, eq=False)
class Margins:
    """Result of the second pass: images whose class is the best of its own group, by margin.

    The margin of an image is ``seen_score − unseen_score``. Under γ, an image with a seen label is
    right if its margin is above γ, and one with an unseen label if it is not.

    Attributes:
        seen, unseen: sums of shares by margin, as limbs [_LIMBS, P + 1].
        at_gamma: images that are right at the model's γ, by class [T].
        at_zero: those that are right without calibration [T].
    """

    seen: NDArray[np.int64]
    unseen: NDArray[np.int64]
    at_gamma: NDArray[np.int64]
    at_zero: NDArray[np.int64]

    @classmethod
    def empty(cls, curve: Curve) -> Self:
        """Zeros."""
        shape = _LIMBS, len(curve.edges) + 1
        return cls(
            seen=np.zeros(shape, np.int64),
            unseen=np.zeros(shape, np.int64),
            at_gamma=np.zeros(curve.share.shape[1], np.int64),
            at_zero=np.zeros(curve.share.shape[1], np.int64),
        )

    def add(
        self,
        curve: Curve,
        batch: PredictionBatch,
        is_seen: NDArray[np.bool_],
        model: str,
        applied: float,
    ) -> None:
        """Adds a batch of a model's predictions.

        Args:
            is_seen: by class [T].
            applied: the γ that was subtracted from the seen scores already.
        """
        known = np.flatnonzero(batch.y >= 0)
        y = batch.y[known]
        seen, unseen = batch.best["seen"], batch.best["unseen"]
        margin = seen.score[known].astype(np.float64) - unseen.score[known] + applied
        label_seen = is_seen[y]
        right = np.where(label_seen, seen.classes[known] == y, unseen.classes[known] == y)
        position = np.searchsorted(curve.edges, margin, side="left")
        for total, group in ((self.seen, right & label_seen), (self.unseen, right & ~label_seen)):
            for limb in range(_LIMBS):
                # Exact: a batch has fewer than 2^27 rows, and a double holds 53 bits.
                weights = curve.share[limb, y[group]].astype(np.float64)
                sums = np.bincount(position[group], weights, minlength=total.shape[1])
                total[limb] += sums.astype(np.int64)
        gammas = [(self.at_zero, 0.0)]
        if curve.gammas is not None:
            gammas.append((self.at_gamma, curve.gammas[model]))
        for counts, gamma in gammas:
            wins = np.where(label_seen, margin > gamma, margin <= gamma)
            counts[:] += np.bincount(y[right & wins], minlength=len(counts))

    def merge(self, other: Margins) -> None:
        """Adds the counts of another shard."""
        for item in fields(self):
            getattr(self, item.name)[:] += getattr(other, item.name)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Counted:
    """Result of the first pass.

    Attributes:
        grouped: whether predictions have the best seen and the best unseen class.
        margin_range: lowest and highest margin [2].
    """

    counts: ClassCounts
    confusions: Confusions
    grouped: bool
    margin_range: NDArray[np.float64]

    def merge(self, other: _Counted) -> _Counted:
        self.counts.merge(other.counts)
        self.confusions.merge(other.confusions)
        _widen(self.margin_range, *other.margin_range)
        return replace(self, grouped=self.grouped or other.grouped)


def _widen(margin_range: NDArray[np.float64], low: float, high: float) -> None:
    """Extends a range (lowest, highest), in place, to include another one."""
    margin_range[:] = min(margin_range[0], low), max(margin_range[1], high)


class EvaluateWorker:
    """Counts prediction shards: first classes and the range of margins, then margins by bin.

    Args:
        applied: the γ that was subtracted from the seen scores of each model. Margins are computed
            without it, so that one γ means the same for all models.
    """

    def __init__(self, table: ClassTable, applied: Mapping[str, float]) -> None:
        self._table, self._applied = table, applied

    def count(self, task: ShardTask) -> _Counted:
        """The first pass over a shard."""
        counts = ClassCounts.empty(len(self._table))
        confusions = Confusions()
        margin_range = np.array([np.inf, -np.inf])
        grouped = False
        for batch in predictions.read(task.shard.uri, self._table, size=task.shard.size):
            counts.add(batch)
            confusions.add(batch, len(self._table))
            grouped = bool(batch.best)
            if grouped:
                margin = batch.best["seen"].score.astype(np.float64) - batch.best["unseen"].score
                margin += self._applied[task.model]
                _widen(margin_range, margin.min(), margin.max())
        return _Counted(
            counts=counts, confusions=confusions, grouped=grouped, margin_range=margin_range
        )

    def margins(self, task: ShardTask, curve: Curve) -> Margins:
        """The second pass over a shard."""
        assert self._table.seen is not None, (
            "groups exist only where the table has the column 'seen'"
        )
        margins = Margins.empty(curve)
        for batch in predictions.read(task.shard.uri, self._table, size=task.shard.size):
            margins.add(curve, batch, self._table.seen, task.model, self._applied[task.model])
        return margins


def evaluate(job: EvaluateJob, executor: Executor) -> dict[str, Any]:
    """Accuracies and confusions of a prediction store, as plain values.

    Raises:
        InputError: no labels, not a prediction store, or ``unknown_labels`` is ``refuse`` and the
            class table lacks labels.
        JobError: some shards could not be read.
    """
    record = RunRecord(job, executor)
    table = ClassTable.open(job.classes)
    version = snapshot.read(job.predictions, job.version)
    if version.kind != "predictions":
        raise InputError(job.predictions, expected="a prediction store", found=version.kind)
    shards = stored_shards(job.predictions, version)
    tasks = [
        ShardTask(shard=shard, model=receipt.model)
        for shard, receipt in zip(shards, version.shards, strict=True)
    ]
    chosen = np.zeros(len(table), bool)
    chosen[table.select(job.split, unknown=job.unknown_labels)] = True
    applied = {
        name: value or 0.0
        for name, value in of_models(job.predictions, version, "calibration").items()
    }
    with (
        executor.start_workers(EvaluateWorker, table, applied, stage="evaluate") as pool,
        record.observe(pool),
    ):
        counted = _first_pass(pool, tasks, table)
        counts, grouped = counted.counts, counted.grouped
        unknown = counts.unknown()
        check_labels(job, job.predictions, unknown)
        if not counts.images.any():
            raise InputError(
                job.predictions, expected="predictions with labels", found="no labelled image"
            )
        result = {
            "predictions": job.predictions,
            "version": version.version,
            "candidates": version.summary.get("candidates"),
            "split": job.split,
            "compressed": version.summary.get("compressed"),
            "metric": version.summary.get("metric"),
            "models": snapshot_summary.section(job.predictions, version, "models"),
            "images": int(counts.rows[0]),
            **unknown,
            "top1": counts.accuracy(chosen),
        }
        if table.seen is not None:
            result |= groups(counts, table.seen, chosen, grouped=grouped)
        if grouped and "H" in result:
            curve = Curve.of(counts, chosen, counted.margin_range, _gammas(job, version))
            margins = _second_pass(pool, tasks, curve)
            result["calibrated"] = calibrated(curve, margins, counts, table, chosen)
            if any(applied.values()):
                without = _gzsl(margins.at_zero, counts, table, chosen)
                result |= {"applied_gamma": _one_of(applied), "uncalibrated": without}
    result["per_class"] = per_class(counts, table, chosen)
    result["confusions"] = counted.confusions.worst(table, chosen)
    return {**result, "run": record.summary()}


def per_class(
    counts: ClassCounts, table: ClassTable, chosen: NDArray[np.bool_]
) -> list[dict[str, Any]]:
    """Images and hit@1 of each class of ``chosen`` [T] that has images."""
    return [
        {
            "class_id": table.ids[int(t)].as_py(),
            "name": table.names[int(t)],
            "seen": None if table.seen is None else bool(table.seen[t]),
            "images": int(counts.images[t]),
            "hit@1": float(counts.hits[0][t] / counts.images[t]),
        }
        for t in np.flatnonzero(chosen & (counts.images > 0))
    ]


def of_models(store: str, version: Snapshot, key: str) -> dict[str, float | None]:
    """A number of each model of a prediction version, by fingerprint.

    Raises:
        InputError: it is not a finite number, naming the key.
    """
    sections = snapshot_summary.section(store, version, "models")
    found = {}
    for receipt in version.shards:
        path = ("models", receipt.model, key) if receipt.model in sections else (key,)
        found[receipt.model] = snapshot_summary.number(store, version, *path)
    return found


def _gammas(job: EvaluateJob, version: Snapshot) -> dict[str, float] | None:
    """The γ of each model: the job's, or those from tuning if all models have one."""
    if job.calibration is not None:
        return {receipt.model: job.calibration for receipt in version.shards}
    values = of_models(job.predictions, version, "model_calibration")
    tuned = {name: value for name, value in values.items() if value is not None}
    return tuned if len(tuned) == len(values) else None


def _first_pass(
    pool: WorkerPool[EvaluateWorker], tasks: list[ShardTask], table: ClassTable
) -> _Counted:
    total = _Counted(
        counts=ClassCounts.empty(len(table)),
        confusions=Confusions(),
        grouped=False,
        margin_range=np.array([np.inf, -np.inf]),
    )
    results = pool.map(EvaluateWorker.count, tasks)
    for part in completed(results, total=len(tasks), label="evaluate"):
        total = total.merge(part)
    return total


def _second_pass(pool: WorkerPool[EvaluateWorker], tasks: list[ShardTask], curve: Curve) -> Margins:
    total = Margins.empty(curve)
    results = pool.map(EvaluateWorker.margins, tasks, curve)
    for part in completed(results, total=len(tasks), label="calibrate"):
        total.merge(part)
    return total


def groups(
    counts: ClassCounts, seen: NDArray[np.bool_], chosen: NDArray[np.bool_], *, grouped: bool
) -> dict[str, Any]:
    """ts, tr and H of GZSL, and top-1 within the label's own group (ZSL for unseen labels).

    Args:
        seen, chosen: by class [T].
    """
    figures: dict[str, Any] = {}
    for name, group in (("tr", chosen & seen), ("ts", chosen & ~seen)):
        accuracy = counts.accuracy(group)
        figures["seen" if name == "tr" else "unseen"] = accuracy
        if "hit@1" not in accuracy:
            continue
        if grouped:
            figures[name] = accuracy["hit@1"]
            has = group & (counts.images > 0)
            in_group = class_mean(counts.group_hits[has], counts.images[has])
            figures["zsl" if name == "ts" else "seen_only"] = in_group
        elif name == "ts" and not counts.predicted[seen].any():
            figures["zsl"] = accuracy["hit@1"]
    if "ts" in figures and "tr" in figures:
        figures["H"] = harmonic(figures["ts"], figures["tr"])
    return figures


def calibrated(
    curve: Curve,
    margins: Margins,
    counts: ClassCounts,
    table: ClassTable,
    chosen: NDArray[np.bool_],
) -> dict[str, Any]:
    """The seen-unseen curve of the classes ``chosen`` [T]: its area, its best H (which knows the
    labels), and H at each model's γ."""
    assert table.seen is not None, "checked by the caller"
    has = chosen & (counts.images > 0)
    n_seen, n_unseen = int((has & table.seen).sum()), int((has & ~table.seen).sum())
    by_seen, by_unseen = value_of_limbs(margins.seen), value_of_limbs(margins.unseen)
    # Under γ = edges[p], seen images with margin > γ are right, unseen ones with margin ≤ γ.
    tr = (by_seen.sum() - np.cumsum(by_seen)[:-1]) / n_seen
    ts = np.cumsum(by_unseen)[:-1] / n_unseen
    tr = np.concatenate([[by_seen.sum() / n_seen], tr])
    ts = np.concatenate([[0.0], ts])
    H = np.array([harmonic(float(a), float(b)) for a, b in zip(ts, tr, strict=True)])
    best = int(np.argmax(H))
    figures: dict[str, Any] = {
        "ausuc": float(np.sum(0.5 * (tr[1:] + tr[:-1]) * np.diff(ts))),
        "best_H": float(H[best]),
        "best_gamma": float(curve.edges[max(best - 1, 0)]),
    }
    if curve.gammas is not None:
        figures["gamma"] = _one_of(curve.gammas)
        figures |= _gzsl(margins.at_gamma, counts, table, chosen)
    return figures


def _one_of(values: Mapping[str, float]) -> float | dict[str, float]:
    """A number of each model, or the one that all have."""
    return next(iter(values.values())) if len({*values.values()}) == 1 else dict(values)


def _gzsl(
    right: NDArray[np.int64], counts: ClassCounts, table: ClassTable, chosen: NDArray[np.bool_]
) -> dict[str, float]:
    """tr, ts and H of images that are right, by class [T]."""
    assert table.seen is not None, "checked by the caller"
    has = chosen & (counts.images > 0)
    tr, ts = (
        class_mean(right[group], counts.images[group])
        for group in (has & table.seen, has & ~table.seen)
    )
    return {"tr": tr, "ts": ts, "H": harmonic(ts, tr)}
