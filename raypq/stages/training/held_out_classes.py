"""Held-out training classes: how well settings recognise classes that were not trained on.

Some of the training classes are treated as unseen: their rows are not trained on. A part of the
rows of the other classes is held out. Test data is not used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raypq import console
from raypq.config import TrainJob
from raypq.errors import ConfigError
from raypq.execution.executor import Executor, WorkerPool
from raypq.execution.run_record import RunRecord
from raypq.kernels import topk_per_vector
from raypq.methods import registry
from raypq.methods.base import Model, TrainingSetInfo
from raypq.metrics.accuracy import harmonic
from raypq.stages.training.sample import draw

if TYPE_CHECKING:
    from raypq.stages.training.dataset import TrainingPlan

FEWEST_CLASSES = 8  # of training, to hold some out
MOST_ROWS = 50_000  # of a sample, which is held in memory
UNSEEN_SHARE = 0.25  # of the training classes
HELD_OUT_SHARE = 0.2  # of the rows of the other classes
CURVE_POINTS = 512  # values of γ that are tried
_GROUPS = 10  # of training classes, each of which is left out in turn
_SPLITS = (3, 8)  # fewest and most
_UNSEEN_IN_ALL = 60  # classes that are unseen in one split or another, with fewer splits of more


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """Rows in memory: X [n, dx], y [n] indices into the L training classes."""

    X: NDArray[np.float32]
    y: NDArray[np.int32]
    dataset_info: TrainingSetInfo


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One setting on one split."""

    settings: Mapping[str, Any]
    split: int

    @property
    def name(self) -> str:
        """The trial, for errors."""
        return f"trial {dict(self.settings)} on split {self.split}"


@dataclass(frozen=True, kw_only=True, eq=False)
class TrialScores:
    """Result of a trial: ZSL accuracy, and the margins from which ts, tr and H follow for every γ.

    Attributes:
        margin: best seen minus best unseen score of each held-out row [n].
        share: contribution of each row to the accuracy of its group if it is right [n]; 0 if its
            class is not the best of its own group.
        of_seen: whether its class is a seen one [n].
    """

    zsl: float
    margin: NDArray[np.float64]
    share: NDArray[np.float64]
    of_seen: NDArray[np.bool_]

    def at(self, gamma: float) -> tuple[float, float]:
        """(ts, tr) with γ subtracted from the scores of seen classes."""
        wins = self.margin > gamma
        ts = self.share[~self.of_seen & ~wins].sum()
        return float(ts), float(self.share[self.of_seen & wins].sum())

    def H(self, gamma: float = 0.0) -> float:
        """H with γ subtracted from the scores of seen classes."""
        return harmonic(*self.at(gamma))


def splits_of(L: int) -> int:
    """The number of splits of L training classes: more where each has few unseen classes."""
    return int(np.clip(_UNSEEN_IN_ALL // unseen_classes(L), *_SPLITS))


def unseen_classes(L: int) -> int:
    """Classes that a split of L training classes treats as unseen."""
    return max(2, round(UNSEEN_SHARE * L))


class Trials:
    """Runs trials on the workers of one pool."""

    def __init__(self, pool: WorkerPool[HeldOutWorker], label: str) -> None:
        self._pool, self._label = pool, label

    def run(self, trials: Sequence[Trial]) -> list[TrialScores]:
        """The results, in order.

        Raises:
            ConfigError: settings that do not fit the sample.
        """
        scores: list[TrialScores] = []
        with console.progress(len(trials), self._label, unit="trials") as progress:
            for result in self._pool.map(HeldOutWorker.run, trials, ordered=True):
                if result.failure:  # of the settings, so other trials would fail too
                    raise ConfigError(str(result.failure))
                scores.append(result.value)
                progress.done()
        return scores


@contextmanager
def open_trials(
    job: TrainJob,
    plan: TrainingPlan,
    executor: Executor,
    record: RunRecord,
    label: str,
    *,
    most_rows: int = MOST_ROWS,
) -> Iterator[Trials]:
    """Workers for trials of a job's method on a sample of the training rows; the job's settings
    come before those of a trial."""
    sample = _draw_sample(job, plan, executor, record, most_rows)
    args = (job.method, dict(job.settings), sample, seed_of(job))
    with executor.start_workers(HeldOutWorker, *args, stage="tune") as pool, record.observe(pool):
        yield Trials(pool, label)


def seed_of(job: TrainJob) -> int:
    """The seed of a job's method."""
    return registry.create(job.method, job.settings).settings.seed


def best_gamma(trials: Sequence[TrialScores]) -> tuple[float, float]:
    """γ with the best mean H of several splits, and that H."""
    margins = np.concatenate([trial.margin for trial in trials])
    gammas = np.linspace(margins.min(), margins.max(), CURVE_POINTS)
    curve = [float(np.mean([trial.H(gamma) for trial in trials])) for gamma in gammas]
    best = int(np.argmax(curve))
    return float(gammas[best]), curve[best]


def _draw_sample(
    job: TrainJob, plan: TrainingPlan, executor: Executor, record: RunRecord, most: int
) -> Sample:
    """Reads a sample of the training rows into memory, of ``most`` rows."""
    rng = np.random.default_rng([seed_of(job), 10])
    N = plan.dataset_info.N
    rows = np.sort(rng.choice(N, min(N, most), replace=False))
    assert plan.classes is not None, "checked before"
    X, y = draw(
        job,
        plan.tasks,
        plan.dataset_info.dx,
        plan.classes,
        rows,
        executor,
        record,
        on_bad_shard=job.on_bad_shard,
    )
    return Sample(X=X, y=y, dataset_info=plan.dataset_info)


class HeldOutWorker:
    """Trains on a part of the sample and evaluates on the rest."""

    def __init__(self, method: str, fixed: Mapping[str, Any], sample: Sample, seed: int) -> None:
        self._method, self._fixed, self._sample, self._seed = method, fixed, sample, seed

    def run(self, trial: Trial) -> TrialScores:
        """Trains and evaluates with the settings of a trial."""
        sample = self._sample
        unseen, fit = split_rows(sample.y, sample.dataset_info.L, self._seed, trial.split)
        model = self._fit({**trial.settings, **self._fixed}, fit, ~unseen)
        return split_accuracy(model, sample, unseen, ~fit)

    def _fit(
        self, settings: Mapping[str, Any], rows: NDArray[np.bool_], classes: NDArray[np.bool_]
    ) -> Model:
        cls = registry.find(self._method)
        method = registry.create(self._method, {**settings, **cls.trial_settings})
        sample = self._sample
        assert sample.dataset_info.A is not None, "checked before"
        # Without classes that have no row in the sample.
        counts = np.bincount(sample.y[rows], minlength=len(classes))
        chosen = np.flatnonzero(classes & (counts > 0))
        target = np.full(len(classes), -1, np.int32)
        target[chosen] = np.arange(len(chosen), dtype=np.int32)
        X, y = sample.X[rows], target[sample.y[rows]]
        names = tuple(sample.dataset_info.names[index] for index in chosen)
        dataset_info = TrainingSetInfo(
            N=len(X), dx=X.shape[1], A=sample.dataset_info.A[chosen], names=names
        )
        from raypq.stages.training.in_memory import fit_in_memory  # torch

        return fit_in_memory(method, dataset_info, X, y)


def split_rows(
    y: NDArray[np.int32], L: int, seed: int, split: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """One split: the classes that are treated as unseen [L], and the rows to train on [n]."""
    rng = np.random.default_rng([seed, 11, split])
    unseen = np.zeros(L, bool)
    unseen[rng.permutation(L)[: unseen_classes(L)]] = True
    held_out = rng.random(len(y)) < HELD_OUT_SHARE
    return unseen, ~unseen[y] & ~held_out


def split_accuracy(
    model: Model, sample: Sample, unseen: NDArray[np.bool_], rows: NDArray[np.bool_]
) -> TrialScores:
    """Accuracies of rows among all training classes, by uncompressed scores."""
    assert sample.dataset_info.A is not None, "checked before"
    U, y = model.embed(sample.X[rows]), sample.y[rows]
    V, bias = model.prototypes(sample.dataset_info.A)
    best = {}
    for name, group in (("seen", np.flatnonzero(~unseen)), ("unseen", np.flatnonzero(unseen))):
        tables = model.tables(V[group], bias[group], model.class_metric)
        score, at = topk_per_vector(U, tables, 1)
        best[name] = score[:, 0].astype(np.float64), group[at[:, 0]]
    of_seen = ~unseen[y]
    right = np.where(of_seen, best["seen"][1] == y, best["unseen"][1] == y)
    images = np.bincount(y, minlength=len(unseen))
    classes = np.where(of_seen, (images[~unseen] > 0).sum(), (images[unseen] > 0).sum())
    share = right / images[y] / classes
    return TrialScores(
        zsl=float(share[~of_seen].sum()),
        margin=best["seen"][0] - best["unseen"][0],
        share=share,
        of_seen=of_seen,
    )


def competition(
    Ps: Sequence[NDArray[np.floating]], y: NDArray[np.int32], info: TrainingSetInfo, seed: int
) -> list[TrialScores]:
    """Accuracies where training classes compete with the other classes of the table, whose scores
    are combinations of class probabilities P [n, L] (``support.class_relations``); of several P.

    Seen rows are those held out of training, classes y [n]. Unseen ones are the same rows, as if
    their classes had not been trained on, nor those of others: a tenth of the classes at a time.
    """
    from raypq.methods.support.class_relations import weights, without  # torch

    assert info.A is not None, "checked before"
    assert info.A_other is not None, "checked before"
    S, others, L = info.A, info.A_other, info.L
    # Of every P, first its rows as seen ones, then as unseen ones; the same for what is right.
    margin, right = np.zeros((len(Ps), 2, len(y))), np.zeros((len(Ps), 2, len(y)), bool)
    w = weights(S, np.concatenate([S, others])).T
    for at, P in enumerate(Ps):
        margin[at, 0], best, _ = _compare(P @ w, L)
        right[at, 0] = best == y
    order = np.random.default_rng([seed, 15]).permutation(L)
    for part in np.array_split(order, min(L, _GROUPS)):
        group = np.sort(part)
        rows, left_out = np.isin(y, group), np.isin(np.arange(L), group)
        w = weights(S[~left_out], np.concatenate([S[~left_out], others, S[group]])).T
        truth = len(others) + np.searchsorted(group, y[rows])
        for at, P in enumerate(Ps):
            margin[at, 1, rows], _, best = _compare(without(P[rows], left_out) @ w, len(w))
            right[at, 1, rows] = best == truth
    images = np.bincount(y, minlength=L)
    share = right / images[y] / (images > 0).sum()
    of_seen = np.repeat([True, False], len(y))
    return [
        TrialScores(
            zsl=float(share[at, 1].sum()),
            margin=margin[at].ravel(),
            share=share[at].ravel(),
            of_seen=of_seen,
        )
        for at in range(len(Ps))
    ]


def _compare(
    scores: NDArray[np.float64], seen: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """The best of the first ``seen`` scores less the best of the others [n], and where they are."""
    groups = scores[:, :seen], scores[:, seen:]
    at = [group.argmax(axis=1) for group in groups]
    one, other = (group[np.arange(len(scores)), i] for group, i in zip(groups, at, strict=True))
    return one - other, at[0], at[1]
