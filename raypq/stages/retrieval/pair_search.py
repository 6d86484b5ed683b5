"""Pairs of stored codes within a threshold, by symmetric distance: how they are found.

Candidates come from the join of codes (``kernels.join``), at a cost below N², or, where the
threshold is too wide for it, from a scan of all N²/2 pairs by the range kernel. Symmetric tables
[M, K, K] then give their scores. So the result depends neither on the shards, nor on the workers,
nor on the way to the candidates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq import console, kernels
from raypq.config import DeduplicateJob, DuplicatesJob, Metric
from raypq.data.storage import Shard
from raypq.data.store.snapshot import Snapshot
from raypq.errors import ConfigError, InputError, ModelError
from raypq.kernels.join import CodeJoin, choose
from raypq.kernels.sdc import SymmetricTables
from raypq.methods.base import Model
from raypq.stages.retrieval.code_blocks import CodeBlock, groups, read_block, sample_codes
from raypq.stages.stores.code_store import (
    id_type_of,
    metric_of,
    models_for,
    warn_of_codes_for_classes,
)
from raypq.stages.stores.shard_task import stored_shards

_JOINED_ROWS = 1 << 24  # rows of each side of a task of the join, at 100 bytes each
_SCANNED_ROWS = 1 << 17  # and of the scan
_SAMPLE_ROWS = 400_000  # codes on which the ways are compared
_FEW_ROWS = 20_000  # which are scanned at once
_LONG_SECONDS = 600.0  # of a scan that is worth a warning
_CANDIDATES = 1 << 28  # of a task of the join, at 8 bytes each
_CHUNK = 1 << 20  # candidates that are scored at a time
_UNLIMITED = 1 << 60  # pairs
_FAR = 2.0  # times as many pairs as allowed, by a sample, that end a job before it starts
# Rows of each side that are compared at once: less than 1 GB even if all pairs are within the
# threshold. There are never fewer stored rows than query rows.
_QUERY_ROWS, _STORED_ROWS = 512, 1 << 16


@dataclass(frozen=True, kw_only=True, eq=False)
class PairPlan:
    """Settings of a run that all its tasks share.

    Attributes:
        id_type: of the store. max_pairs: pairs that are allowed in all. join: None for a scan.
    """

    store: str
    model: Model
    id_type: pa.DataType
    metric: Metric
    threshold: float
    max_pairs: int
    device: str
    join: CodeJoin | None


Codes = NDArray[np.uint8]
NearPairs = tuple[pa.Array, pa.Array, NDArray[np.float32]]  # rows of both sides, and scores
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


class PairSearch:
    """Finds the near pairs of two groups of shards, or within one."""

    def __init__(self, plan: PairPlan) -> None:
        self.plan = plan
        self.symmetric = SymmetricTables(plan.model.C, plan.metric)

    def read_sides(self, task: PairTask, groups: BlockGroups) -> tuple[CodeBlock, CodeBlock]:
        """The codes of the groups of a task; of one group, twice the same."""
        first = self._read(groups[task.first])
        return first, first if task.second is None else self._read(groups[task.second])

    def near_pairs(
        self, task: PairTask, first: CodeBlock, second: CodeBlock, *, once: bool = False
    ) -> Iterator[NearPairs]:
        """Pairs within the threshold: rows of the first and the second block, and their scores.

        Args:
            once: whether the first row of a code stands for others with it, as in a join.
        """
        same = task.second is None
        if task.parts is not None:
            yield from self._joined(first, second, same=same, parts=task.parts, once=once)
        elif not once:
            yield from self._scanned(first, second, same=same)
        else:
            yield from self._scanned_once(first, second, same=same)

    def _read(self, shards: Sequence[Shard]) -> CodeBlock:
        plan = self.plan
        models = {plan.model.fingerprint: plan.model}
        return CodeBlock.join([read_block(shard, models, plan.id_type) for shard in shards])

    def _joined(
        self, first: CodeBlock, second: CodeBlock, *, same: bool, parts: int, once: bool
    ) -> Iterator[NearPairs]:
        """Pairs within the threshold that the join finds by a group of parts."""
        plan = self.plan
        assert plan.join is not None, "a task of the join"
        other = None if same else second.B
        found = plan.join.find(parts, first.B, other, once=once, most_pairs=_CANDIDATES)
        if found.total > _CANDIDATES:
            raise too_many(_CANDIDATES, of="candidates of one task")
        for start in range(0, len(found.rows), _CHUNK):
            i, j = found.rows[start : start + _CHUNK].T
            near, score = self._scored(first.B[i], second.B[j])
            if near.any():
                yield pa.array(i[near]), pa.array(j[near]), score[near]

    def _scored(self, A: Codes, B: Codes) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        """Which pairs of codes [n, M] are within the threshold, and all scores [n]."""
        score, threshold = self.symmetric(A, B), np.float32(self.plan.threshold)
        return score <= threshold if self.plan.metric == "l2" else score >= threshold, score

    def _scanned(self, first: CodeBlock, second: CodeBlock, *, same: bool) -> Iterator[NearPairs]:
        """Pairs within the threshold: rows of the first and the second block, and their scores."""
        plan = self.plan
        tolerance = 2.0**-20 * abs(plan.threshold) + self.symmetric.tolerance
        min_score = (-plan.threshold if plan.metric == "l2" else plan.threshold) - tolerance
        for start in range(0, len(first.B), _QUERY_ROWS):
            A = first.B[start : start + _QUERY_ROWS]
            tables = plan.model.tables(plan.model.decode(A), None, plan.metric)
            for at in range(start if same else 0, len(second.B), _STORED_ROWS):
                B = second.B[at : at + _STORED_ROWS]
                # Within one block, the first stored rows are the query rows themselves.
                i, j, _ = kernels.range_search(
                    B, tables, min_score, upper_triangle=same and at == start, device=plan.device
                )
                near, score = self._scored(A[i], B[j])
                if near.any():
                    yield pa.array(i[near] + start), pa.array(j[near] + at), score[near]

    def _scanned_once(
        self, first: CodeBlock, second: CodeBlock, *, same: bool
    ) -> Iterator[NearPairs]:
        """As ``_scanned``, of distinct codes; and the first row of each with the others."""
        leaders, leader = _leaders(first.B)
        others = leaders
        if not same:
            others, _ = _leaders(second.B)
        else:
            follow = np.flatnonzero(leader != np.arange(len(leader)))
            near, score = self._scored(first.B[leader[follow]], first.B[follow])
            if near.any():
                yield pa.array(leader[follow][near]), pa.array(follow[near]), score[near]
        a = first.take(leaders)
        b = a if same else second.take(others)
        for i, j, score in self._scanned(a, b, same=same):
            yield pa.array(leaders[i.to_numpy()]), pa.array(others[j.to_numpy()]), score


def _leaders(B: Codes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first row of each distinct code, ascending, and that of the code of each row [n]."""
    if not len(B):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    _, first, code = np.unique(B, axis=0, return_index=True, return_inverse=True)
    return np.sort(first), first[code.reshape(-1)]


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
        found=f"{found}; a narrower threshold gives fewer, and raypq deduplicate groups them "
        "without a list of pairs",
    )


def pair_plan(job: DuplicatesJob | DeduplicateJob, version: Snapshot) -> PairPlan:
    """The plan of a job, without a join yet.

    Raises:
        ConfigError: a threshold that no pair can reach.
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
    metric = metric_of(models, job.metric)
    warn_of_codes_for_classes(job.codes, models)
    if metric == "l2" and job.threshold < 0:
        raise ConfigError(f"threshold: an l2 distance is at least 0, found {job.threshold}")
    return PairPlan(
        store=job.output,
        model=next(iter(models.values())),
        id_type=id_type_of(job.codes, version),
        metric=metric,
        threshold=job.threshold,
        max_pairs=job.max_pairs if isinstance(job, DuplicatesJob) else _UNLIMITED,
        device=job.where.device,
        join=None,
    )


def choose_join(
    job: DuplicatesJob | DeduplicateJob, plan: PairPlan, version: Snapshot
) -> CodeJoin | None:
    """The join by which pairs are found; None where a scan is as fast. Says what will be done.

    Raises:
        InputError: a sample has more pairs than allowed by far.
    """
    if version.rows <= _FEW_ROWS:
        return None
    rows = [receipt.rows for receipt in version.shards]
    models = {plan.model.fingerprint: plan.model}
    shards = stored_shards(job.codes, version)
    sample = sample_codes(shards, rows, models, plan.id_type, size=_SAMPLE_ROWS)
    choice = choose(sample, version.rows, plan.model.C, plan.metric, plan.threshold)
    workers = job.where.workers * job.where.threads
    seconds = choice.seconds / workers
    if choice.join is None:
        if seconds > _LONG_SECONDS:
            console.warn(
                f"the threshold {plan.threshold:g} ({plan.metric}) is too wide to leave pairs out: "
                f"all {version.rows**2 / 2:.2g} are compared, in about {seconds / 60:,.0f} minutes "
                f"on {workers} cores; a stricter one takes a small part of that"
            )
        return None
    console.say(
        f"about {choice.pairs:.2g} pairs of codes are expected, in about {seconds:,.0f} s of search"
    )
    if choice.pairs > _FAR * plan.max_pairs:
        raise too_many(plan.max_pairs, expected=choice.pairs)
    return choice.join


def blocks_of_pairs(store: str, plan: PairPlan, version: Snapshot) -> BlockGroups:
    """The groups of shards of which tasks compare two."""
    rows = [receipt.rows for receipt in version.shards]
    most = _SCANNED_ROWS if plan.join is None else _JOINED_ROWS
    return groups(stored_shards(store, version), rows, max_rows=most)


def pair_tasks(plan: PairPlan, blocks: BlockGroups) -> list[PairTask]:
    """A task for every two blocks, and for each group of parts of a join."""
    return [
        PairTask(name=block[0].uri, first=i, second=None if i == j else j, parts=parts)
        for i, block in enumerate(blocks)
        for j in range(i, len(blocks))
        for parts in ([None] if plan.join is None else range(plan.join.groups))
    ]
