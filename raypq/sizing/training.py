"""Costs of training by reduction: one pass over all rows, then passes over a sample."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

from raypq.sizing.rates import Rates
from raypq.sizing.stage import Stage, batches, embedding, opening, reading, stage, start
from raypq.sizing.workload import Workload

_SEED_SAMPLE, _SEED_ROUNDS, _SEED_ROWS = 16_384, 10, 16  # as raypq/methods seeds its codebooks
# Passes that update the embedding too, and passes of the codebooks alone, at most.
_MOVING = {"pq": 0, "opq": 25, "pqzsl": 10}
_POLISH = {"pq": 25, "opq": 10, "pqzsl": 10}
_MOST_GROUPS, _GROUP_ROWS = 256, 16_384  # as raypq/stages/training/shard_groups.py has them
# Rows of the sample for each codeword, and the share that passes see which update the embedding.
_SAMPLED = {"pq": 512, "opq": 1024, "pqzsl": 512}
_JOINT_SHARE = {"pq": 1, "opq": 1, "pqzsl": 4}
_AT_ONCE = 3  # solutions and decompositions of an update
# As raypq/stages/training/held_out_classes.py has them: rows of the sample, fewest classes, classes
# that are unseen in one training or another, fewest and most trainings, rows and classes that each
# fits; and the passes of such a training.
_CALIBRATED_ROWS, _FEWEST_CLASSES, _UNSEEN_IN_ALL, _TRAININGS = 50_000, 8, 60, (3, 8)
_FITTED, _FITTED_CLASSES = 0.75 * 0.8, 0.75
_FITTED_PASSES = 2


@dataclass(frozen=True, kw_only=True)
class _Passes:
    """Rows that passes see, and the number of these passes.

    Attributes:
        all: rows of the first pass. moving, n_moving: of passes that update the embedding.
        polish, n_polish: of passes of the codebooks alone.
    """

    all: int
    moving: int
    n_moving: int
    polish: int
    n_polish: int

    @classmethod
    def of(cls, work: Workload) -> Self:
        """Those of a training."""
        images = work.train_images or work.images
        sampled = min(images, _SAMPLED[work.method] * work.K)
        share = 1 if sampled == images else _JOINT_SHARE[work.method]
        n_moving, n_polish = _MOVING[work.method], _POLISH[work.method]
        return cls(
            all=images, moving=sampled // share, n_moving=n_moving, polish=sampled,
            n_polish=n_polish,
        )  # fmt: skip

    @property
    def sampled(self) -> bool:
        """Whether later passes see fewer rows than the first one."""
        return self.polish < self.all


def train(work: Workload, rates: Rates) -> Stage:
    """Training, and the calibration of a model with classes.

    The pass over 16 shards for the baseline of drift is not counted.
    """
    passes, D, dx = _Passes.of(work), work.D, work.dims
    shards = math.ceil(passes.all / work.shard_images)
    # One worker processes a group of shards.
    busy = min(work.workers, shards, _MOST_GROUPS, math.ceil(passes.all / _GROUP_ROWS))
    kept = passes.polish * 4 * dx
    reads = 1 if kept <= work.workers * work.cache_bytes else 1 + passes.n_moving + passes.n_polish
    read = passes.all * reading(work, rates) * reads
    parallel = (read + _computed(work, rates, passes, K=work.K)) / busy
    parallel += opening(work, rates, passes.all) * reads
    threads = min(work.workers, _AT_ONCE)
    driver = _seeding(work, rates) / threads
    driver += _updates(work, rates, passes.n_moving, L=work.L, D=D, threads=threads)
    calibration = _calibration(work, rates, passes)
    memory = (
        rates.worker_bytes
        + min(work.cache_bytes, kept / busy)
        + batches(work)
        + 8 * (dx * dx + 2 * D * dx + 2 * D * work.K)
    )
    reads += bool(calibration)
    return stage("train", work, start(work, rates) + parallel + driver + calibration,
                  read=reads * passes.all * work.feature_bytes, written=4.0 * D * (dx + work.K),
                  memory=memory, gpus=0)  # fmt: skip


def _computed(work: Workload, rates: Rates, passes: _Passes, *, K: int) -> float:
    """Seconds of a worker that all passes compute."""
    D, dx = work.D, work.dims
    embed = embedding(work, rates)
    assign = D * (2 * K / rates.cpu.assignment + 1 / rates.accumulate)
    turn = 2 * D * dx / rates.gram + D / rates.accumulate
    first = 0.0 if work.method == "pq" else 2 * dx * dx / rates.gram
    # Rows of a sample whose embedding is final are embedded once.
    embedded = 1 if passes.sampled else passes.n_polish
    return (
        passes.all * first
        + passes.n_moving * passes.moving * (embed + assign + turn)
        + passes.polish * (embedded * embed + passes.n_polish * assign)
    )


def _calibration(work: Workload, rates: Rates, passes: _Passes) -> float:
    """Seconds in which a model with classes is calibrated: trainings on parts of a sample, one on
    each worker at a time."""
    rows = min(_CALIBRATED_ROWS, passes.all // 3)
    if work.method != "pqzsl" or work.L < _FEWEST_CLASSES or rows < 2 * work.L:
        return 0.0
    unseen = max(2, round(work.L / 4))
    trainings = min(max(_UNSEEN_IN_ALL // unseen, _TRAININGS[0]), _TRAININGS[1])
    turns = math.ceil(trainings / work.workers)
    shards = math.ceil(passes.all / work.shard_images)
    sample = passes.all * reading(work, rates) / min(work.workers, shards)
    fitted = round(_FITTED * rows)
    each = _Passes(all=fitted, moving=fitted, n_moving=_FITTED_PASSES, polish=fitted, n_polish=0)
    L = round(_FITTED_CLASSES * work.L)
    seconds = _computed(work, rates, each, K=16)
    return sample + turns * (seconds + _updates(work, rates, _FITTED_PASSES, L=L, D=L, threads=1))


def _seeding(work: Workload, rates: Rates) -> float:
    rows = min(_SEED_SAMPLE, work.train_images or work.images)
    assign = _SEED_ROUNDS * rows * 2 * work.D * work.K / rates.cpu.assignment
    seeding = work.K * min(rows, _SEED_ROWS * work.K) * work.D / rates.seed
    return assign + seeding


def _updates(work: Workload, rates: Rates, updates: int, *, L: int, D: int, threads: int) -> float:
    """Seconds in which the driver finds the first embedding, and updates it: float64 products,
    solutions and decompositions, on this many threads."""
    dx, da = work.dims, work.attributes
    if work.method == "pq":
        return 0.0
    n = D if work.method == "pqzsl" else dx
    first = 20.0 * n**3 + 2.0 * dx**3
    if work.method == "opq":
        return (first + updates * 20.0 * D * D * dx) / rates.solve
    products = 10.0 * D * dx * dx + 6.0 * D * L * dx + 2.0 * D * D * (dx + L)
    solved = 2.0 / 3 * dx**3 + 2.0 * D * dx * dx + 9.0 * D**3 + 40.0 * L**3 + 9.0 * da**3
    return (first + updates * (products + solved) / threads) / rates.solve
