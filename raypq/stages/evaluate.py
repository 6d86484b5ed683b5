"""Evaluate predictions against labels: ZSL, GZSL, hit@k and calibrated stacking.

All accuracies are means over classes (``…_image_mean`` beside them is the mean over images).
*Calibrated stacking* (Chao et al., ECCV 2016) takes a constant γ off the scores of seen classes,
which moves along the seen-unseen curve; uncalibrated H mostly measures the bias to seen classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypq import console
from raypq.config import EvaluateJob
from raypq.data import predictions, snapshot
from raypq.data.classes import ClassTable
from raypq.data.predictions import PredictionBatch
from raypq.data.snapshot import Snapshot
from raypq.errors import InputError, ShardFailure
from raypq.stages.confusions import Confusions
from raypq.stages.crew import Crew, Gang, settle
from raypq.stages.record import RunRecord
from raypq.stages.store import ShardTask, stored_shards
from raypq.stages.tally import Tally, class_mean

CURVE_POINTS = 2048  # values of γ on the seen-unseen curve


@dataclass(frozen=True, kw_only=True, eq=False)
class Margins:
    """The second pass: how often the right class wins its group, by margin.

    A labelled image whose class is the best of its own group is right under γ as long as
    ``seen_score − γ > unseen_score`` (seen label) or not (unseen label); its margin is the
    difference of the two scores.

    Attributes:
        edges: values of γ [P], ascending. share: 1 / images of each class, 0 outside the split [T].
        gammas: a γ of special interest for each model, counted exactly.
        seen, unseen: sums of shares by margin [P + 1]. at_gamma: right at γ by class [T].
    """

    edges: NDArray[np.float64]
    share: NDArray[np.float64]
    gammas: Mapping[str, float] | None
    seen: NDArray[np.float64]
    unseen: NDArray[np.float64]
    at_gamma: NDArray[np.int64]

    def add(
        self, batch: PredictionBatch, is_seen: NDArray[np.bool_], model: str, applied: float
    ) -> None:
        """Counts one batch of a model's predictions, from whose seen scores γ = ``applied`` went
        already; ``is_seen`` [T]."""
        known = np.flatnonzero(batch.y >= 0)
        y = batch.y[known]
        seen, unseen = batch.best["seen"], batch.best["unseen"]
        margin = seen.score[known].astype(np.float64) - unseen.score[known] + applied
        of_seen = is_seen[y]
        right = np.where(of_seen, seen.classes[known] == y, unseen.classes[known] == y)
        place = np.searchsorted(self.edges, margin, side="left")
        for total, group in ((self.seen, right & of_seen), (self.unseen, right & ~of_seen)):
            total += np.bincount(place[group], self.share[y[group]], minlength=len(total))
        if self.gammas is not None:
            gamma = self.gammas[model]
            wins = np.where(of_seen, margin > gamma, margin <= gamma)
            self.at_gamma[:] += np.bincount(y[right & wins], minlength=len(self.at_gamma))

    def merge(self, other: Margins) -> None:
        """Adds the counts of another shard."""
        for name in ("seen", "unseen", "at_gamma"):
            getattr(self, name)[:] += getattr(other, name)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Counted:
    """The first pass: counts, whether groups stand beside the classes, and the range of margins."""

    tally: Tally
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

    def __call__(self, task: ShardTask, shared: Margins | None) -> Any:
        return self._count(task) if shared is None else self._margins(task, shared)

    def _count(self, task: ShardTask) -> _Counted:
        tally = Tally.empty(len(self._table))
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

    def _margins(self, task: ShardTask, empty: Margins) -> Margins:
        assert self._table.seen is not None, "groups exist only where the table says who is seen"
        found = Margins(
            edges=empty.edges,
            share=empty.share,
            gammas=empty.gammas,
            seen=np.zeros_like(empty.seen),
            unseen=np.zeros_like(empty.unseen),
            at_gamma=np.zeros_like(empty.at_gamma),
        )
        for batch in predictions.read(task.shard.uri, self._table, size=task.shard.size):
            found.add(batch, self._table.seen, task.model, self._applied[task.model])
        return found


def evaluate(job: EvaluateJob, crew: Crew) -> dict[str, Any]:
    """Figures of a prediction store, as plain values.

    Raises:
        InputError: no labels, or a store that is not one of predictions.
        JobError: shards that could not be read.
    """
    record = RunRecord(job, crew)
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
    chosen[table.select(job.split)] = True
    applied = {name: value or 0.0 for name, value in of_models(version, "calibration").items()}
    with record.hire(EvaluateWorker, table, applied) as gang:
        counted = _first_pass(gang, tasks, table)
        tally, grouped = counted.tally, counted.grouped
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
            "top1": tally.accuracy(chosen),
        }
        if table.seen is not None:
            result |= groups(tally, table.seen, chosen, grouped=grouped)
        if grouped and "H" in result:
            empty = _empty_margins(tally, chosen, counted.reach, _gammas(job, version))
            margins = _second_pass(gang, tasks, empty)
            result["calibrated"] = calibrated(margins, tally, table, chosen)
    result["per_class"] = per_class(tally, table, chosen)
    result["confusions"] = counted.confusions.worst(table, chosen)
    return {**result, "run": record.told()}


def per_class(tally: Tally, table: ClassTable, chosen: NDArray[np.bool_]) -> list[dict[str, Any]]:
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


def _first_pass(gang: Gang, tasks: list[ShardTask], table: ClassTable) -> _Counted:
    total = _Counted(
        tally=Tally.empty(len(table)),
        confusions=Confusions(),
        grouped=False,
        reach=np.array([np.inf, -np.inf]),
    )
    failures: list[ShardFailure] = []
    with console.progress(len(tasks), "evaluate") as progress:
        for outcome in gang.map(tasks):
            progress.done()
            if outcome.failure:
                failures.append(outcome.failure)
            else:
                total = total.merge(outcome.result)
    settle(failures, len(tasks) - len(failures), "fail")
    return total


def _second_pass(gang: Gang, tasks: list[ShardTask], empty: Margins) -> Margins:
    parts: dict[int, Margins] = {}
    failures: list[ShardFailure] = []
    for outcome in gang.map(tasks, empty):
        if outcome.failure:
            failures.append(outcome.failure)
        else:
            parts[outcome.index] = outcome.result
    settle(failures, len(parts), "fail")
    for index in sorted(parts):  # float sums: the order fixes the last bit
        empty.merge(parts[index])
    return empty


def _empty_margins(
    tally: Tally,
    chosen: NDArray[np.bool_],
    reach: NDArray[np.float64],
    gammas: Mapping[str, float] | None,
) -> Margins:
    share = np.where(chosen & (tally.images > 0), 1.0 / np.maximum(tally.images, 1), 0.0)
    edges = np.linspace(reach[0], reach[1], CURVE_POINTS)
    return Margins(
        edges=edges,
        share=share,
        gammas=gammas,
        seen=np.zeros(CURVE_POINTS + 1),
        unseen=np.zeros(CURVE_POINTS + 1),
        at_gamma=np.zeros(len(share), np.int64),
    )


def harmonic(ts: float, tr: float) -> float:
    """H, the harmonic mean of ts and tr; 0 where both are."""
    return 2 * ts * tr / (ts + tr) if ts + tr else 0.0


def groups(
    tally: Tally, seen: NDArray[np.bool_], chosen: NDArray[np.bool_], *, grouped: bool
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
    margins: Margins, tally: Tally, table: ClassTable, chosen: NDArray[np.bool_]
) -> dict[str, Any]:
    """The seen-unseen curve: its area, its best H (an oracle), and H at the chosen γ.

    ``chosen`` [T] are the classes that are judged.
    """
    assert table.seen is not None, "checked by the caller"
    has = chosen & (tally.images > 0)
    n_seen, n_unseen = int((has & table.seen).sum()), int((has & ~table.seen).sum())
    # Under γ = edges[p], seen images with margin > γ are right, unseen ones with margin ≤ γ.
    tr = (margins.seen.sum() - np.cumsum(margins.seen)[:-1]) / n_seen
    ts = np.cumsum(margins.unseen)[:-1] / n_unseen
    tr = np.concatenate([[margins.seen.sum() / n_seen], tr])
    ts = np.concatenate([[0.0], ts])
    H = np.array([harmonic(float(a), float(b)) for a, b in zip(ts, tr, strict=True)])
    best = int(np.argmax(H))
    found: dict[str, Any] = {
        "ausuc": float(np.sum(0.5 * (tr[1:] + tr[:-1]) * np.diff(ts))),
        "best_H": float(H[best]),
        "best_gamma": float(margins.edges[max(best - 1, 0)]),
    }
    if margins.gammas is not None:
        seen, unseen = has & table.seen, has & ~table.seen
        values = set(margins.gammas.values())
        found["gamma"] = values.pop() if len(values) == 1 else dict(margins.gammas)
        found["tr"] = class_mean(margins.at_gamma[seen], tally.images[seen])
        found["ts"] = class_mean(margins.at_gamma[unseen], tally.images[unseen])
        found["H"] = harmonic(found["ts"], found["tr"])
    return found
