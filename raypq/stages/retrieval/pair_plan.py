"""The plan of a search for near pairs: its tasks, and whether codes are joined or scanned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from raypq import console
from raypq.config import ClusterJob, DeduplicateJob, DuplicatesJob, Metric, NeighborsJob
from raypq.data.storage import Shard
from raypq.data.store.snapshot import Snapshot
from raypq.errors import ConfigError, InputError, ModelError
from raypq.kernels.join import CodeJoin, choose
from raypq.methods.base import Model
from raypq.stages.retrieval.code_blocks import SAMPLE_SHARDS, groups, sample_codes
from raypq.stages.stores.code_store import (
    id_type_of,
    metric_of,
    models_for,
    warn_of_codes_for_classes,
)
from raypq.stages.stores.shard_task import stored_shards

_JOINED_ROWS = 1 << 24  # rows of each side of a task of the join, at 100 bytes each
_SCANNED_ROWS = 1 << 17  # and of the scan
_SAMPLE_ROWS = 200_000  # codes on which the ways are compared
_FEW_ROWS = 20_000  # which are scanned at once
_LONG_SECONDS = 600.0  # of a scan that is worth a warning
_UNLIMITED = 1 << 60  # pairs
_FAR = 2.0  # times as many pairs as allowed, by a sample, that end a job before it starts


@dataclass(frozen=True, kw_only=True, eq=False)
class PairPlan:
    """Settings of a run that all its tasks share.

    Attributes:
        id_type: of the store; other_type: of the store that it is compared with, or the same.
        across: whether these are two stores, and not one. max_pairs: pairs that are allowed in all.
        join: None for a scan.
    """

    store: str
    model: Model
    id_type: pa.DataType
    other_type: pa.DataType
    metric: Metric
    threshold: float
    max_pairs: int
    device: str
    join: CodeJoin | None = None
    across: bool = False

    @property
    def metadata(self) -> dict[str, str]:
        """Metadata of result files."""
        return {
            "raypq.model": self.model.fingerprint,
            "raypq.metric": self.metric,
            "raypq.threshold": repr(self.threshold),
        }


StoreVersion = tuple[str, Snapshot]  # a code store, and one of its versions
BlockGroups = Sequence[tuple[Shard, ...]]  # of shards; a task compares two of them


@dataclass(frozen=True, kw_only=True)
class PairTask:
    """Two groups of shards, by index; or one and None, for the pairs within it.

    The groups themselves are shared, since n groups give n²/2 tasks.

    Attributes:
        parts: group of parts of the code whose near pairs a join finds.
    """

    name: str
    first: int
    second: int | None
    parts: int | None = None


def too_many(
    most: int, *, of: str = "pairs within it (max_pairs)", expected: float | None = None
) -> InputError:
    """The error where more than ``most`` pairs are within the threshold.

    Args:
        of: what is counted. expected: how many, by a sample.
    """
    found = "more" if expected is None else f"about {expected:.2g} by a sample"
    return InputError(
        "threshold",
        expected=f"at most {most:,} {of}",
        found=f"{found}; a narrower threshold gives fewer, and of equal codes raypq deduplicate "
        "needs no list of pairs",
    )


def pair_plan(job: DuplicatesJob | DeduplicateJob, version: Snapshot) -> PairPlan:
    """The plan of a job, without a join yet.

    Raises:
        ConfigError: a threshold that no pair can reach.
        ModelError: several models, or one whose codes are of classes.
    """
    model, metric = images_of_one_model(job, version)
    if metric == "l2" and job.threshold < 0:
        raise ConfigError(f"threshold: an l2 distance is at least 0, found {job.threshold}")
    id_type = id_type_of(job.codes, version)
    return PairPlan(
        store=job.output,
        model=model,
        id_type=id_type,
        other_type=id_type,
        metric=metric,
        threshold=job.threshold,
        max_pairs=job.max_pairs if isinstance(job, DuplicatesJob) else _UNLIMITED,
        device=job.where.device,
    )


def images_of_one_model(
    job: DuplicatesJob | DeduplicateJob | NeighborsJob | ClusterJob, version: Snapshot
) -> tuple[Model, Metric]:
    """The model of a store whose codes are compared with each other, and the metric.

    Raises:
        ModelError: several models, or one whose codes are of classes.
    """
    models = models_for(job.codes, version, job.model)
    if len(models) > 1:
        raise ModelError(
            job.codes,
            expected="codes of one model, to compare them with each other",
            found=f"{len(models)} models; encode all of the store with one",
        )
    (model,) = models.values()
    if model.stores_classes:
        raise ModelError(
            job.codes,
            expected="codes of images",
            found=f"codes of class probabilities ({model.method}), which are as near for two "
            "images of one class as for duplicates; encode with another model, such as pq or opq, "
            "or train with codes=parts",
        )
    warn_of_codes_for_classes(job.codes, models)
    return model, metric_of(models, job.metric)


def choose_join(
    job: DuplicatesJob | DeduplicateJob, plan: PairPlan, stores: Sequence[StoreVersion]
) -> CodeJoin | None:
    """The join by which pairs are found; None where a scan is as fast. Says what will be done.

    Raises:
        InputError: a sample has more pairs than allowed by far.
    """
    total = sum(version.rows for _, version in stores)
    if total <= _FEW_ROWS:
        return None
    models = {plan.model.fingerprint: plan.model}
    parts = []
    for (store, version), id_type in zip(stores, (plan.id_type, plan.other_type), strict=False):
        rows = [receipt.rows for receipt in version.shards]
        size = -(-_SAMPLE_ROWS * version.rows // total)
        shards = stored_shards(store, version)
        parts.append(sample_codes(shards, rows, models, id_type, size=size))
    sample = np.random.default_rng(1).permutation(np.concatenate(parts))
    # Of two stores, pairs within each are tried, too: an estimate from above.
    counts = [version.rows for _, version in stores]
    compared = math.prod(counts) if plan.across else total**2 / 2
    choice = choose(sample, total, plan.model.C, plan.metric, plan.threshold, compared=compared)
    workers = job.where.workers * job.where.threads
    seconds = choice.seconds / workers
    if choice.join is None:
        if seconds > _LONG_SECONDS:
            console.warn(
                f"the threshold {plan.threshold:g} ({plan.metric}) is too wide to leave pairs out: "
                f"all {compared:.2g} are compared, in about {seconds / 60:,.0f} minutes "
                f"on {workers} cores; a stricter one takes a small part of that"
            )
        return None
    expected = "" if plan.across else f"about {choice.pairs:.2g} pairs of images are expected, "
    console.say(f"{expected}in about {seconds:,.0f} s of search".removeprefix("in "))
    # Copies within few shards weigh more in a sample of few shards, by this factor at most.
    filled = sum(1 for receipt in stores[0][1].shards if receipt.rows)
    least = choice.pairs / max(1.0, filled / SAMPLE_SHARDS)
    if not plan.across and least > _FAR * plan.max_pairs:
        raise too_many(plan.max_pairs, expected=least)
    return choice.join


def blocks_of_pairs(store: str, plan: PairPlan, version: Snapshot) -> BlockGroups:
    """The groups of shards of which tasks compare two."""
    rows = [receipt.rows for receipt in version.shards]
    most = _SCANNED_ROWS if plan.join is None else _JOINED_ROWS
    return groups(stored_shards(store, version), rows, max_rows=most)


def pair_tasks(plan: PairPlan, blocks: BlockGroups, own: int | None = None) -> list[PairTask]:
    """A task for every two blocks, and for each group of parts of a join.

    Args:
        own: number of the first blocks, which are compared with the others alone; None: all are
            compared with one another, and within themselves.
    """
    n = len(blocks)
    if own is None:
        sides = [(i, None if i == j else j) for i in range(n) for j in range(i, n)]
    else:
        sides = [(i, j) for i in range(own) for j in range(own, n)]
    return [
        PairTask(name=blocks[i][0].uri, first=i, second=j, parts=parts)
        for i, j in sides
        for parts in ([None] if plan.join is None else range(plan.join.groups))
    ]
