"""Groups of the last version, from which the next one starts: a night costs what is new.

A version names, as a sidecar, the code files that its groups were made of: ``shard``, ``sha256``,
and ``source``, the tag of their original vectors where these decide.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raypq import console
from raypq.config import DeduplicateJob
from raypq.data.storage import Shard, join
from raypq.data.store import sidecars, snapshot
from raypq.data.store.journal import still_there
from raypq.data.store.sidecars import Sidecars
from raypq.data.store.snapshot import Snapshot
from raypq.errors import InputError
from raypq.execution.executor import WorkerPool, completed
from raypq.stages.retrieval.duplicates.group_edges import (
    AgainTask,
    EdgeWorker,
    Files,
    RecallTask,
)

_KIND = "codefiles"
_SCHEMA = pa.schema([("shard", pa.string()), ("sha256", pa.string()), ("source", pa.string())])
_MOST_NEW = 0.5  # of the rows; beyond that, all files are compared

FileTag = tuple[str, str | None]  # sha256 of a code file, and the tag of its original vectors


@dataclass(frozen=True, kw_only=True, eq=False)
class KnownGroups:
    """The last version of a groups store.

    Attributes:
        starts: number of the first row of each code file that it has seen, by its shard.
        new: numbers of the other code files. digest: of their content.
        parts: first part of each group of its join; None where all pairs were scanned.
    """

    version: Snapshot
    starts: Mapping[str, int]
    new: Sequence[int]
    digest: str
    parts: tuple[int, ...] | None


def tags_of(files: Files, originals: Sequence[Shard] | None) -> dict[str, FileTag]:
    """What identifies the content of each code file, by its shard."""
    tags: dict[str, FileTag] = {}
    for number, (shard, _) in enumerate(files):
        source = None
        if originals is not None:
            original = originals[number]
            source = f"{original.uri} {original.size} {original.modified}"
        tags[shard.stem] = (shard.modified, source)
    return tags


def write_tags(store: str, tags: Mapping[str, FileTag]) -> Sidecars:
    """Writes the sidecar of a version with these code files."""
    hashes, sources = zip(*tags.values(), strict=True)
    table = pa.table([[*tags], list(hashes), list(sources)], schema=_SCHEMA)
    with sidecars.create(store, _KIND, "parquet") as draft:
        pq.write_table(table, draft.file)
    return {_KIND: [draft.sidecar()]}


def known_groups(
    job: DeduplicateJob, settings: str, version: Snapshot, tags: Mapping[str, FileTag]
) -> KnownGroups | None:
    """The groups of the last version, where the next one can start from them.

    Args:
        settings: digest of everything but the codes. version: of the code store. tags: of its
            files, in order.
    """
    latest = snapshot.read(job.output) if snapshot.versions(job.output) else None
    if latest is None or latest.summary.get("settings") != settings or job.linkage != "single":
        return None
    if (seen := _read_tags(job.output, latest)) is None:
        return None
    starts: dict[str, int] = {}
    new, row, new_rows, content = [], 0, 0, hashlib.sha256()
    for index, receipt in enumerate(version.shards):
        tag = tags[receipt.shard]
        if seen.get(receipt.shard) == tag:
            starts[receipt.shard] = row
        else:
            new.append(index)
            new_rows += receipt.rows
            content.update(f"{receipt.shard} {tag}\n".encode())
        row += receipt.rows
    if new_rows > _MOST_NEW * version.rows:
        return None
    console.say(
        f"{new_rows:,} of {version.rows:,} images, in {len(new)} of {len(version.shards)} code "
        f"files, are new since version {latest.version}: these are compared with all"
    )
    parts = latest.summary.get("parts")
    return KnownGroups(
        version=latest,
        starts=starts,
        new=new,
        digest=content.hexdigest(),
        parts=None if parts is None else tuple(parts),
    )


def _read_tags(store: str, version: Snapshot) -> dict[str, FileTag] | None:
    """The code files of a version of groups; None, with a warning, if files of it are gone."""
    missing = len(version.shards) - len(still_there(store, version.shards))
    try:
        (sidecar,) = version.sidecars(store)[_KIND]
        table = pq.read_table(io.BytesIO(sidecars.read(store, sidecar)))
        shards, hashes, sources = (table[name].to_pylist() for name in _SCHEMA.names)
    except (InputError, OSError, KeyError, ValueError, pa.ArrowException):
        missing += 1
    if missing:
        console.warn(
            f"{missing} files of {store} version {version.version} are gone or damaged: its groups "
            "cannot be taken over, and all codes are compared again"
        )
        return None
    return dict(zip(shards, zip(hashes, sources, strict=True), strict=True))


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
        task = AgainTask(rows=rows, parts=known.parts)
        paths += completed(
            pool.map(EdgeWorker.compare_again, [task], files),
            total=1,
            label="compare again",
            unit="tasks",
        )
    return paths
