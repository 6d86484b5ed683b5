"""Groups of the last version, from which the next one starts: a night costs what is new."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from raypq import console
from raypq.config import DeduplicateJob
from raypq.data.storage import canonical, join
from raypq.data.store import snapshot
from raypq.data.store.snapshot import Snapshot
from raypq.execution.executor import WorkerPool, completed
from raypq.stages.retrieval.duplicates.group_edges import AgainTask, EdgeWorker, Files, RecallTask

_MOST_NEW = 0.5  # of the rows; beyond that, all files are compared


@dataclass(frozen=True, kw_only=True, eq=False)
class KnownGroups:
    """The last version of a groups store.

    Attributes:
        starts: number of the first row of each code file that it has seen, by its shard.
        new: numbers of the other code files.
        parts: first part of each group of its join; None where all pairs were scanned.
    """

    version: Snapshot
    starts: Mapping[str, int]
    new: Sequence[int]
    parts: tuple[int, ...] | None


def known_groups(job: DeduplicateJob, settings: str, version: Snapshot) -> KnownGroups | None:
    """The groups of the last version, where the next one can start from them.

    Args:
        settings: digest of everything but the codes. version: of the code store.
    """
    latest = snapshot.read(job.output) if snapshot.versions(job.output) else None
    if latest is None or latest.summary.get("settings") != settings:
        return None
    number, store = latest.summary["codes_version"], latest.summary["codes"]
    if job.linkage != "single" or canonical(store) != canonical(job.codes):
        return None
    if number not in snapshot.versions(job.codes):
        console.say(
            f"version {number} of {job.codes}, of which {job.output} has the groups, is gone: all "
            "codes are compared again"
        )
        return None
    seen = {receipt.shard: receipt for receipt in snapshot.read(job.codes, number).shards}
    starts: dict[str, int] = {}
    new, row, new_rows = [], 0, 0
    for index, receipt in enumerate(version.shards):
        before = seen.get(receipt.shard)
        same = before is not None and before.sha256 == receipt.sha256
        # Where original vectors decide, they may have changed where the codes have not.
        if same and before and (not job.rerank or before.source.same_file(receipt.source)):
            starts[receipt.shard] = row
        else:
            new.append(index)
            new_rows += receipt.rows
        row += receipt.rows
    if new_rows > _MOST_NEW * version.rows:
        return None
    console.say(
        f"{new_rows:,} of {version.rows:,} images, in {len(new)} of {len(version.shards)} code "
        f"files, are new since version {latest.version}: these are compared with all"
    )
    parts = latest.summary.get("parts")
    return KnownGroups(
        version=latest, starts=starts, new=new, parts=None if parts is None else tuple(parts)
    )


def recalled_edges(
    known: KnownGroups, store: str, pool: WorkerPool[EdgeWorker], files: Files
) -> list[str]:
    """Paths of the edges between code files that are not new."""
    tasks = [
        RecallTask(uri=join(store, receipt.path), size=receipt.bytes)
        for receipt in known.version.shards
    ]
    results = pool.map(EdgeWorker.recall, tasks, known.starts)
    found = list(completed(results, total=len(tasks), label="recall", unit="groups files"))
    paths = [part.path for part in found]
    rows = np.sort(np.concatenate([np.empty(0, np.uint32), *(part.rows for part in found)]))
    if len(rows):
        console.say(f"{len(rows):,} images are of groups that have lost one: compared again")
        again = pool.map(EdgeWorker.compare_again, [AgainTask(rows=rows)], files)
        paths += completed(again, total=1, label="compare again", unit="tasks")
    return paths
