"""Evaluate predictions against labels: ZSL, GZSL, hit@k and calibrated stacking.

All accuracies are means over classes (``…_image_mean`` beside them is the mean over images).
*Calibrated stacking* (Chao et al., ECCV 2016) takes a constant γ off the scores of seen classes,
which moves along the seen-unseen curve; uncalibrated H mostly measures the bias to seen classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypq import console
from raypq.config import EvaluateJob
from raypq.data import predictions, snapshot
from raypq.data.classes import ClassTable
from raypq.data.predictions import PredictionBatch
from raypq.errors import InputError, ShardFailure
from raypq.stages.crew import Crew, Gang, settle
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
        gamma: a γ of special interest, counted exactly.
        seen, unseen: sums of shares by margin [P + 1]. at_gamma: right at γ by class [T].
    """

    edges: NDArray[np.float64]
    share: NDArray[np.float64]
    gamma: float | None
    seen: NDArray[np.float64]
    unseen: NDArray[np.float64]
    at_gamma: NDArray[np.int64]

    def add(self, batch: PredictionBatch, is_seen: NDArray[np.bool_]) -> None:
        """Counts one batch."""
        known = np.flatnonzero(batch.y >= 0)
        y = batch.y[known]
        seen, unseen = batch.best["seen"], batch.best["unseen"]
        margin = seen.score[known].astype(np.float64) - unseen.score[known]
        of_seen = is_seen[y]
        right = np.where(of_seen, seen.classes[known] == y, unseen.classes[known] == y)
        place = np.searchsorted(self.edges, margin, side="left")
        for total, group in ((self.seen, right & of_seen), (self.unseen, right & ~of_seen)):
            total += np.bincount(place[group], self.share[y[group]], minlength=len(total))
        if self.gamma is not None:
            wins = np.where(of_seen, margin > self.gamma, margin <= self.gamma)
            self.at_gamma[:] += np.bincount(y[right & wins], minlength=len(self.at_gamma))

    def merge(self, other: Margins) -> None:
        """Adds the counts of another shard."""
        for name in ("seen", "unseen", "at_gamma"):
            getattr(self, name)[:] += getattr(other, name)


class EvaluateWorker:
    """Counts prediction shards: a tally and the range of margins, then the margins by bin."""

    def __init__(self, table: ClassTable) -> None:
        self._table = table

    def __call__(self, task: ShardTask, shared: Margins | None) -> Any:
        return self._count(task) if shared is None else self._margins(task, shared)

    def _count(self, task: ShardTask) -> tuple[Tally, bool, NDArray[np.float64]]:
        tally = Tally.empty(len(self._table))
        reach = np.array([np.inf, -np.inf])
        grouped = False
        for batch in predictions.read(task.shard.uri, self._table, size=task.shard.size):
            tally.add(batch)
            grouped = bool(batch.best)
            if grouped:
                margin = batch.best["seen"].score.astype(np.float64) - batch.best["unseen"].score
                reach[:] = min(reach[0], margin.min()), max(reach[1], margin.max())
        return tally, grouped, reach

    def _margins(self, task: ShardTask, empty: Margins) -> Margins:
        assert self._table.seen is not None, "groups exist only where the table says who is seen"
        found = Margins(
            edges=empty.edges,
            share=empty.share,
            gamma=empty.gamma,
            seen=np.zeros_like(empty.seen),
            unseen=np.zeros_like(empty.unseen),
            at_gamma=np.zeros_like(empty.at_gamma),
        )
        for batch in predictions.read(task.shard.uri, self._table, size=task.shard.size):
            found.add(batch, self._table.seen)
        return found


def evaluate(job: EvaluateJob, crew: Crew) -> dict[str, Any]:
    """Figures of a prediction store, as plain values.

    Raises:
        InputError: no labels, or a store that is not one of predictions.
        JobError: shards that could not be read.
    """
    table = ClassTable.open(job.classes)
    version = snapshot.read(job.predictions, job.version)
    if version.kind != "predictions":
        raise InputError(job.predictions, expected="a prediction store", found=version.kind)
    tasks = [ShardTask(shard=shard) for shard in stored_shards(job.predictions, version)]
    chosen = np.zeros(len(table), bool)
    chosen[table.select(job.split)] = True
    gamma = job.calibration
    if gamma is None:
        gamma = version.summary.get("model_calibration")
    # Scores that are calibrated already need only the rest.
    applied = float(version.summary.get("calibration") or 0.0)
    with crew.hire(EvaluateWorker, table) as gang:
        tally, grouped, reach = _first_pass(gang, tasks, table)
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
            "images": int(tally.rows[0]),
            "top1": tally.accuracy(chosen),
        }
        if table.seen is not None:
            result |= groups(tally, table.seen, chosen, grouped=grouped)
        if grouped and "H" in result:
            rest = None if gamma is None else float(gamma) - applied
            empty = _empty_margins(tally, chosen, reach, rest)
            margins = _second_pass(gang, tasks, empty)
            result["calibrated"] = calibrated(margins, tally, table, chosen, applied)
    return result


def _first_pass(
    gang: Gang, tasks: list[ShardTask], table: ClassTable
) -> tuple[Tally, bool, NDArray[np.float64]]:
    tally = Tally.empty(len(table))
    reach = np.array([np.inf, -np.inf])
    grouped = False
    failures: list[ShardFailure] = []
    with console.progress(len(tasks), "evaluate") as progress:
        for outcome in gang.map(tasks):
            progress.done()
            if outcome.failure:
                failures.append(outcome.failure)
                continue
            part, has_groups, its_reach = outcome.result
            tally.merge(part)
            grouped |= has_groups
            reach[:] = min(reach[0], its_reach[0]), max(reach[1], its_reach[1])
    settle(failures, len(tasks) - len(failures), "fail")
    return tally, grouped, reach


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
    tally: Tally, chosen: NDArray[np.bool_], reach: NDArray[np.float64], gamma: float | None
) -> Margins:
    share = np.where(chosen & (tally.images > 0), 1.0 / np.maximum(tally.images, 1), 0.0)
    edges = np.linspace(reach[0], reach[1], CURVE_POINTS)
    return Margins(
        edges=edges,
        share=share,
        gamma=gamma,
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
    """ts, tr and H of GZSL, and top-1 among the label's own group (ZSL for unseen labels)."""
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
    margins: Margins,
    tally: Tally,
    table: ClassTable,
    chosen: NDArray[np.bool_],
    applied: float,
) -> dict[str, Any]:
    """The seen-unseen curve: its area, its best H (an oracle), and H at the chosen γ."""
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
        "best_gamma": float(margins.edges[max(best - 1, 0)]) + applied,
    }
    if margins.gamma is not None:
        seen, unseen = has & table.seen, has & ~table.seen
        found["gamma"] = margins.gamma + applied
        found["tr"] = class_mean(margins.at_gamma[seen], tally.images[seen])
        found["ts"] = class_mean(margins.at_gamma[unseen], tally.images[unseen])
        found["H"] = harmonic(found["ts"], found["tr"])
    return found
