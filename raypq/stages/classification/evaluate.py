"""Evaluate predictions against labels: ZSL, GZSL, hit@k and calibrated stacking.

All accuracies are means over classes (``…_image_mean`` beside them is the mean over images).
*Calibrated stacking* (Chao et al., ECCV 2016) takes a constant γ off the scores of seen classes,
which moves along the seen-unseen curve; uncalibrated H mostly measures the bias to seen classes.
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
from raypq.data.store import snapshot
from raypq.data.store.snapshot import Snapshot
from raypq.errors import InputError
from raypq.execution.executor import Executor, WorkerPool, completed
from raypq.execution.run_record import RunRecord
from raypq.metrics.accuracy import ClassCounts, class_mean, harmonic
from raypq.metrics.confusion import Confusions
from raypq.stages.classification.unknown_labels import check_labels
from raypq.stages.stores.shard_task import ShardTask, stored_shards

CURVE_POINTS = 2048  # values of γ on the seen-unseen curve
_LIMBS, _BITS = 3, 26  # of shares: 78 bits after the point


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """What the second pass is asked for.

    Attributes:
        edges: values of γ [P], ascending. share: 1 / images of each class, 0 outside the split, as
            limbs of ``_BITS`` bits each [_LIMBS, T]: sums of whole numbers do not depend on their
            order, so shards are added as they arrive.
        gammas: a γ of special interest for each model, counted exactly.
    """

    edges: NDArray[np.float64]
    share: NDArray[np.int64]
    gammas: Mapping[str, float] | None

    @classmethod
    def of(
        cls,
        tally: ClassCounts,
        chosen: NDArray[np.bool_],
        reach: NDArray[np.float64],
        gammas: Mapping[str, float] | None,
    ) -> Self:
        """The curve over margins within ``reach`` (low, high); ``chosen`` [T] are judged."""
        share = np.zeros((_LIMBS, len(chosen)), np.int64)
        for t in np.flatnonzero(chosen & (tally.images > 0)):
            share[:, t] = share_limbs(int(tally.images[t]))
        return cls(edges=np.linspace(reach[0], reach[1], CURVE_POINTS), share=share, gammas=gammas)


def share_limbs(images: int) -> list[int]:
    """1 / images, rounded to ``_LIMBS`` · ``_BITS`` bits after the point; the highest first."""
    one = 1 << _LIMBS * _BITS
    share = (one + images // 2) // images
    low = [share >> _BITS * limb & (1 << _BITS) - 1 for limb in range(_LIMBS - 1)]
    return [share >> _BITS * (_LIMBS - 1), *reversed(low)]


def value_of_limbs(limbs: NDArray[np.int64]) -> NDArray[np.float64]:
    """The numbers that sums of limbs [_LIMBS, n] stand for [n]."""
    one = 1 << _LIMBS * _BITS
    exact = [
        sum(int(limb) << _BITS * place for place, limb in enumerate(reversed(column)))
        for column in limbs.T
    ]
    return np.array([whole / one for whole in exact])


@dataclass(frozen=True, kw_only=True, eq=False)
class Margins:
    """The second pass: how often the right class wins its group, by margin.

    A labelled image whose class is the best of its own group is right under γ as long as
    ``seen_score − γ > unseen_score`` (seen label) or not (unseen label); its margin is the
    difference of the two scores.

    Attributes:
        seen, unseen: sums of shares by margin, as limbs [_LIMBS, P + 1].
        at_gamma: right at γ by class [T].
    """

    seen: NDArray[np.int64]
    unseen: NDArray[np.int64]
    at_gamma: NDArray[np.int64]

    @classmethod
    def empty(cls, curve: Curve) -> Self:
        """Nothing counted yet."""
        shape = _LIMBS, len(curve.edges) + 1
        return cls(
            seen=np.zeros(shape, np.int64),
            unseen=np.zeros(shape, np.int64),
            at_gamma=np.zeros(curve.share.shape[1], np.int64),
        )

    def add(
        self,
        curve: Curve,
        batch: PredictionBatch,
        is_seen: NDArray[np.bool_],
        model: str,
        applied: float,
    ) -> None:
        """Counts one batch of a model's predictions, from whose seen scores γ = ``applied`` went
        already; ``is_seen`` [T]."""
        known = np.flatnonzero(batch.y >= 0)
        y = batch.y[known]
        seen, unseen = batch.best["seen"], batch.best["unseen"]
        margin = seen.score[known].astype(np.float64) - unseen.score[known] + applied
        of_seen = is_seen[y]
        right = np.where(of_seen, seen.classes[known] == y, unseen.classes[known] == y)
        place = np.searchsorted(curve.edges, margin, side="left")
        for total, group in ((self.seen, right & of_seen), (self.unseen, right & ~of_seen)):
            for limb in range(_LIMBS):
                # Exact: a batch has fewer than 2^27 rows, and a double holds 53 bits.
                weights = curve.share[limb, y[group]].astype(np.float64)
                sums = np.bincount(place[group], weights, minlength=total.shape[1])
                total[limb] += sums.astype(np.int64)
        if curve.gammas is not None:
            gamma = curve.gammas[model]
            wins = np.where(of_seen, margin > gamma, margin <= gamma)
            self.at_gamma[:] += np.bincount(y[right & wins], minlength=len(self.at_gamma))

    def merge(self, other: Margins) -> None:
        """Adds the counts of another shard."""
        for item in fields(self):
            getattr(self, item.name)[:] += getattr(other, item.name)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Counted:
    """The first pass: counts, whether groups stand beside the classes, and the range of margins."""

    tally: ClassCounts
    confusions: Confusions
    grouped: bool
    reach: NDArray[np.float64]

    def merge(self, other: _Counted) -> _Counted:
        self.tally.merge(other.tally)
        self.confusions.merge(other.confusions)
        low, high = min(self.reach[0], other.reach[0]), max(self.reach[1], other.reach[1])
        self.reach[:] = low, high
        return replace(self, grouped=self.grouped or other.grouped)


class EvaluateWorker:
    """Counts prediction shards: a tally and the range of margins, then the margins by bin.

    ``applied`` is the γ that each model's scores hold already; margins are without it, so that
    one γ means the same for all.
    """

    def __init__(self, table: ClassTable, applied: Mapping[str, float]) -> None:
        self._table, self._applied = table, applied

    def count(self, task: ShardTask) -> _Counted:
        """The first pass over a shard."""
        tally = ClassCounts.empty(len(self._table))
        confusions = Confusions()
        reach = np.array([np.inf, -np.inf])
        grouped = False
        for batch in predictions.read(task.shard.uri, self._table, size=task.shard.size):
            tally.add(batch)
            confusions.add(batch, len(self._table))
            grouped = bool(batch.best)
            if grouped:
                margin = batch.best["seen"].score.astype(np.float64) - batch.best["unseen"].score
                margin += self._applied[task.model]
                reach[:] = min(reach[0], margin.min()), max(reach[1], margin.max())
        return _Counted(tally=tally, confusions=confusions, grouped=grouped, reach=reach)

    def margins(self, task: ShardTask, curve: Curve) -> Margins:
        """The second pass over a shard."""
        assert self._table.seen is not None, "groups exist only where the table says who is seen"
        found = Margins.empty(curve)
        for batch in predictions.read(task.shard.uri, self._table, size=task.shard.size):
            found.add(curve, batch, self._table.seen, task.model, self._applied[task.model])
        return found


def evaluate(job: EvaluateJob, executor: Executor) -> dict[str, Any]:
    """Figures of a prediction store, as plain values.

    Raises:
        InputError: no labels, a store that is not one of predictions, or labels that the class
            table lacks, where the job refuses them.
        JobError: shards that could not be read.
    """
    record = RunRecord(job, executor)
    table = ClassTable.open(job.classes)
    version = snapshot.read(job.predictions, job.version)
    if version.kind != "predictions":
        raise InputError(job.predictions, expected="a prediction store", found=version.kind)
    tasks = [
        ShardTask(shard=shard, model=receipt.model)
        for shard, receipt in zip(
            stored_shards(job.predictions, version), version.shards, strict=True
        )
    ]
    chosen = np.zeros(len(table), bool)
    chosen[table.select(job.split, unknown=job.unknown_labels)] = True
    applied = {name: value or 0.0 for name, value in of_models(version, "calibration").items()}
    with (
        executor.start_workers(EvaluateWorker, table, applied, stage="evaluate") as pool,
        record.observe(pool),
    ):
        counted = _first_pass(pool, tasks, table)
        tally, grouped = counted.tally, counted.grouped
        unknown = tally.unknown()
        check_labels(job, job.predictions, unknown)
        if not tally.images.any():
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
            "models": dict(version.summary.get("models", {})),
            "images": int(tally.rows[0]),
            **unknown,
            "top1": tally.accuracy(chosen),
        }
        if table.seen is not None:
            result |= groups(tally, table.seen, chosen, grouped=grouped)
        if grouped and "H" in result:
            curve = Curve.of(tally, chosen, counted.reach, _gammas(job, version))
            margins = _second_pass(pool, tasks, curve)
            result["calibrated"] = calibrated(curve, margins, tally, table, chosen)
    result["per_class"] = per_class(tally, table, chosen)
    result["confusions"] = counted.confusions.worst(table, chosen)
    return {**result, "run": record.summary()}


def per_class(
    tally: ClassCounts, table: ClassTable, chosen: NDArray[np.bool_]
) -> list[dict[str, Any]]:
    """Each class of ``chosen`` [T] that has images: how many, and their share right at top 1."""
    return [
        {
            "class_id": table.ids[int(t)].as_py(),
            "name": table.names[int(t)],
            "seen": None if table.seen is None else bool(table.seen[t]),
            "images": int(tally.images[t]),
            "hit@1": float(tally.hits[0][t] / tally.images[t]),
        }
        for t in np.flatnonzero(chosen & (tally.images > 0))
    ]


def of_models(version: Snapshot, key: str) -> dict[str, float | None]:
    """A figure that a prediction version notes of each of its models; by fingerprint."""
    noted = version.summary.get("models", {})
    values = {
        receipt.model: noted.get(receipt.model, version.summary).get(key)
        for receipt in version.shards
    }
    return {name: None if value is None else float(value) for name, value in values.items()}


def _gammas(job: EvaluateJob, version: Snapshot) -> dict[str, float] | None:
    """The γ to judge by: the one asked for, or what each model was tuned to (all or none)."""
    if job.calibration is not None:
        return {receipt.model: job.calibration for receipt in version.shards}
    own = of_models(version, "model_calibration")
    found = {name: value for name, value in own.items() if value is not None}
    return found if len(found) == len(own) else None


def _first_pass(
    pool: WorkerPool[EvaluateWorker], tasks: list[ShardTask], table: ClassTable
) -> _Counted:
    total = _Counted(
        tally=ClassCounts.empty(len(table)),
        confusions=Confusions(),
        grouped=False,
        reach=np.array([np.inf, -np.inf]),
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
    tally: ClassCounts, seen: NDArray[np.bool_], chosen: NDArray[np.bool_], *, grouped: bool
) -> dict[str, Any]:
    """ts, tr and H of GZSL, and top-1 among the label's own group (ZSL for unseen labels).

    Args:
        seen, chosen: by class [T].
    """
    found: dict[str, Any] = {}
    for name, of_group in (("tr", chosen & seen), ("ts", chosen & ~seen)):
        accuracy = tally.accuracy(of_group)
        found["seen" if name == "tr" else "unseen"] = accuracy
        if "hit@1" not in accuracy:
            continue
        if grouped:
            found[name] = accuracy["hit@1"]
            has = of_group & (tally.images > 0)
            within = class_mean(tally.group_hits[has], tally.images[has])
            found["zsl" if name == "ts" else "seen_only"] = within
        elif name == "ts" and not tally.predicted[seen].any():
            found["zsl"] = accuracy["hit@1"]
    if "ts" in found and "tr" in found:
        found["H"] = harmonic(found["ts"], found["tr"])
    return found


def calibrated(
    curve: Curve, margins: Margins, tally: ClassCounts, table: ClassTable, chosen: NDArray[np.bool_]
) -> dict[str, Any]:
    """The seen-unseen curve: its area, its best H (an oracle), and H at the chosen γ.

    ``chosen`` [T] are the classes that are judged.
    """
    assert table.seen is not None, "checked by the caller"
    has = chosen & (tally.images > 0)
    n_seen, n_unseen = int((has & table.seen).sum()), int((has & ~table.seen).sum())
    by_seen, by_unseen = value_of_limbs(margins.seen), value_of_limbs(margins.unseen)
    # Under γ = edges[p], seen images with margin > γ are right, unseen ones with margin ≤ γ.
    tr = (by_seen.sum() - np.cumsum(by_seen)[:-1]) / n_seen
    ts = np.cumsum(by_unseen)[:-1] / n_unseen
    tr = np.concatenate([[by_seen.sum() / n_seen], tr])
    ts = np.concatenate([[0.0], ts])
    H = np.array([harmonic(float(a), float(b)) for a, b in zip(ts, tr, strict=True)])
    best = int(np.argmax(H))
    found: dict[str, Any] = {
        "ausuc": float(np.sum(0.5 * (tr[1:] + tr[:-1]) * np.diff(ts))),
        "best_H": float(H[best]),
        "best_gamma": float(curve.edges[max(best - 1, 0)]),
    }
    if curve.gammas is not None:
        seen, unseen = has & table.seen, has & ~table.seen
        values = set(curve.gammas.values())
        found["gamma"] = values.pop() if len(values) == 1 else dict(curve.gammas)
        found["tr"] = class_mean(margins.at_gamma[seen], tally.images[seen])
        found["ts"] = class_mean(margins.at_gamma[unseen], tally.images[unseen])
        found["H"] = harmonic(found["ts"], found["tr"])
    return found
