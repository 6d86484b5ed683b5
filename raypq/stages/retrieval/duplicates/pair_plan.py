"""The plan of a search for near pairs: its tasks, and whether codes are joined or scanned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq import console, kernels
from raypq.config import Columns, DeduplicateJob, DuplicatesJob, Metric
from raypq.data import search_results
from raypq.data.storage import Shard
from raypq.data.store.snapshot import Snapshot
from raypq.errors import ConfigError, InputError
from raypq.kernels.join import CodeJoin, choose
from raypq.methods.base import Model
from raypq.stages.retrieval import rerank
from raypq.stages.retrieval.code_blocks import SAMPLE_SHARDS, groups, sample_codes
from raypq.stages.retrieval.one_model import images_of_one_model
from raypq.stages.stores.code_store import (
    id_type_of,
)
from raypq.stages.stores.shard_task import stored_shards

_JOINED_ROWS = 1 << 24  # rows of each side of a task of the join, at 100 bytes each
_SCANNED_ROWS = 1 << 17  # and of the scan
_SAMPLE_ROWS = 200_000  # codes on which the ways are compared
_COMPARED, _ASKING = 20_000, 1000  # codes of the sample among which nearest ones are sought
_FEW_ROWS = 20_000  # which are scanned at once
_LONG_SECONDS = 600.0  # of a scan that is worth a warning
_SHARE = 0.05  # of all pairs that may be found, where no number is set
_FEW_PAIRS = 20_000_000  # of which any share may be found
_FAR = 2.0  # times as many pairs as allowed, by a sample, that end a job before it starts


@dataclass(frozen=True, kw_only=True, eq=False)
class PairPlan:
    """Settings of a run that all its tasks share.

    Attributes:
        id_type: of the store; other_type: of the store that it is compared with, or the same.
        across: whether these are two stores, and not one.
        compared: number of all pairs. max_pairs: pairs that are allowed.
        once: whether one of several equal codes may stand for the others.
        originals: the original vectors of each code file, where they decide.
        join: None for a scan.
    """

    store: str
    model: Model
    id_type: pa.DataType
    other_type: pa.DataType
    metric: Metric
    threshold: float
    compared: float
    max_pairs: int
    once: bool
    device: str
    columns: Columns
    originals: Sequence[Shard] | None = None
    join: CodeJoin | None = None
    across: bool = False

    @property
    def plan_of_tasks(self) -> str:
        """What the tasks of the search depend on, besides the job and the codes."""
        return f"{_JOINED_ROWS}:{self.join.first}" if self.join else f"{_SCANNED_ROWS}"

    @property
    def metadata(self) -> dict[str, str]:
        """Metadata of result files."""
        reranked = {} if self.originals is None else {"raypq.reranked": "true"}
        return {
            "raypq.model": self.model.fingerprint,
            "raypq.metric": self.metric,
            "raypq.threshold": repr(self.threshold),
            **reranked,
        }

    def too_many(self, *, expected: float | None = None) -> InputError:
        """The error where more pairs than allowed are within the threshold.

        Args:
            expected: how many, by a sample.
        """
        found = "more" if expected is None else f"about {expected:.2g} by a sample"
        equal = "" if self.once else "; of equal codes, raypq deduplicate needs no list of pairs"
        return InputError(
            f"threshold {self.threshold:g} ({self.metric})",
            expected=f"at most {self.max_pairs:,} of the {self.compared:.3g} pairs within it",
            found=f"{found}. A narrower threshold gives fewer; --max-pairs (max_pairs) of raypq "
            f"duplicates allows more{equal}",
        )


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

    @property
    def key(self) -> str:
        """Its name among the tasks of a plan."""
        second = self.first if self.second is None else self.second
        return f"part-{self.first}-{second}-{self.parts or 0}"


def pair_plan(job: DuplicatesJob | DeduplicateJob, version: Snapshot) -> PairPlan:
    """The plan of a job on one store, without a join yet.

    Raises:
        ConfigError: a threshold that no pair can reach, or settings that do not go together.
        InputError: features that are not those of the codes.
        ModelError: several models, or one whose codes are of classes.
    """
    model, metric = images_of_one_model(job, version)
    check_settings(job, metric)
    id_type = id_type_of(job.codes, version)
    originals = None
    if job.rerank and job.features is not None:
        originals = rerank.sources(version.shards, job.features, job.columns)
    plan = PairPlan(
        store=job.output,
        model=model,
        id_type=id_type,
        other_type=id_type,
        metric=metric,
        threshold=job.threshold,
        compared=0.0,
        max_pairs=0,
        once=isinstance(job, DeduplicateJob) and originals is None,
        device=job.where.device,
        originals=originals,
        columns=job.columns,
    )
    return allowing(plan, job, version.rows * (version.rows - 1) / 2)


def check_settings(job: DuplicatesJob | DeduplicateJob, metric: Metric) -> None:
    """Refuses settings that need others, or leave them unread.

    Raises:
        ConfigError: such settings, or a threshold that no pair can reach.
    """
    if metric == "l2" and job.threshold < 0:
        raise ConfigError(f"threshold: an l2 distance is at least 0, found {job.threshold}")
    if metric == "cosine" and job.threshold > 1:
        raise ConfigError(f"threshold: a cosine is at most 1, found {job.threshold:g}")
    by_column = isinstance(job, DeduplicateJob) and job.keep_by is not None
    if isinstance(job, DeduplicateJob):
        if by_column != (job.keep != "first"):
            raise ConfigError(
                "keep: largest or smallest goes with the column that decides (--keep-by, keep_by), "
                f"found {job.keep} and {job.keep_by or 'no column'}"
            )
        if job.rerank and job.linkage == "complete":
            raise ConfigError(
                "linkage: complete compares the codes of all images of a group, and goes without "
                "rerank"
            )
    elif job.rerank and job.against is not None:
        raise ConfigError("rerank: pairs of two stores are not compared by their original vectors")
    if (job.rerank or by_column) != (job.features is not None):
        raise ConfigError(
            "features: expected the source of the codes, for --rerank (rerank) or --keep-by "
            "(keep_by), found none; name it by --features (features)"
            if job.features is None
            else "features: only --rerank (rerank) and --keep-by (keep_by) read it, found neither"
        )


def allowing(plan: PairPlan, job: DuplicatesJob | DeduplicateJob, compared: float) -> PairPlan:
    """The plan for so many pairs in all, of which a part may be found."""
    most = job.max_pairs if isinstance(job, DuplicatesJob) else None
    most = most or max(_FEW_PAIRS, int(_SHARE * compared))
    return replace(plan, compared=compared, max_pairs=most)


def choose_join(
    job: DuplicatesJob | DeduplicateJob, plan: PairPlan, stores: Sequence[StoreVersion]
) -> CodeJoin | None:
    """The join by which pairs are found; None where a scan is as fast. Says what will be done.

    Raises:
        InputError: a sample has more pairs than allowed by far.
    """
    total = sum(version.rows for _, version in stores)
    sample = _sample(plan, stores, total)
    _say_nearest(plan, sample)
    if total <= _FEW_ROWS:
        return None
    # Of two stores, pairs within each are tried, too: an estimate from above.
    choice = choose(
        sample, total, plan.model.C, plan.metric, plan.threshold,
        compared=plan.compared, once=plan.once,
    )  # fmt: skip
    # Copies within few shards weigh more in a sample of few shards, by this factor at most.
    filled = sum(1 for receipt in stores[0][1].shards if receipt.rows)
    least = choice.pairs / max(1.0, filled / SAMPLE_SHARDS)
    if not plan.across and least > _FAR * plan.max_pairs:
        raise plan.too_many(expected=least)
    workers = job.where.workers * job.where.threads
    seconds = choice.seconds / workers
    if choice.join is not None:
        expected = "" if plan.across else f"about {choice.pairs:.2g} pairs are expected, "
        console.say(f"{expected}in about {seconds:,.0f} s of search".removeprefix("in "))
    elif seconds > _LONG_SECONDS:
        console.warn(
            f"the threshold {plan.threshold:g} ({plan.metric}) is too wide to leave pairs out: all "
            f"{plan.compared:.2g} are compared, in about {seconds / 60:,.0f} minutes on {workers} "
            "cores; a stricter one takes a small part of that"
        )
    return choice.join


def _say_nearest(plan: PairPlan, sample: NDArray[np.uint8]) -> None:
    """Says how near images of a random sample are to one another, as a scale for thresholds."""
    B = sample[:_COMPARED]
    if len(B) < 2:
        return
    queries = plan.model.tables(plan.model.decode(B[:_ASKING]), None, plan.metric)
    score, _ = kernels.topk_per_query(B, queries, 2)
    nearest = np.sort(search_results.in_metric(score[:, 1], plan.metric))
    if plan.metric != "l2":
        nearest = nearest[::-1]
    at = [float(nearest[int(share * (len(nearest) - 1))]) for share in (0.01, 0.1, 0.5)]
    what = "a squared distance of" if plan.metric == "l2" else f"a {plan.metric} of"
    console.say(
        f"of {len(B):,} sampled images, 1% have another at {what} {at[0]:.3g}, 10% at {at[1]:.3g} "
        f"and half at {at[2]:.3g}; the threshold is {plan.threshold:g}"
    )


def _sample(plan: PairPlan, stores: Sequence[StoreVersion], total: int) -> NDArray[np.uint8]:
    """Random codes of all stores, in random order."""
    models = {plan.model.fingerprint: plan.model}
    parts = []
    for (store, version), id_type in zip(stores, (plan.id_type, plan.other_type), strict=False):
        rows = [receipt.rows for receipt in version.shards]
        size = -(-_SAMPLE_ROWS * version.rows // total)
        shards = stored_shards(store, version)
        parts.append(sample_codes(shards, rows, models, id_type, size=size))
    return np.random.default_rng(1).permutation(np.concatenate(parts))


def blocks_of_pairs(plan: PairPlan, files: Sequence[Shard], rows: Sequence[int]) -> BlockGroups:
    """The groups of code files of which tasks compare two; ``rows``: of each file."""
    most = _SCANNED_ROWS if plan.join is None else _JOINED_ROWS
    return groups(files, rows, max_rows=most)


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
