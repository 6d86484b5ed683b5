"""Tasks of a run: input shards with the model and the work id of their output."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from raypq.data.storage import Shard, canonical, join
from raypq.data.store.shard_writer import Receipt
from raypq.data.store.snapshot import Snapshot
from raypq.stages.stores.source_index import SourceIndex


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """One input shard to process.

    Attributes:
        model: fingerprint of the model. work: work id (``raypq.stages.stores.work_id``).
        previous: receipt of its last output file, if there is one.
        earlier: receipts of output files of the same work that may hold some of its rows.
        before: receipts of the last version, of any work, that may hold some of its rows.
    """

    shard: Shard
    model: str = ""
    work: str = ""
    previous: Receipt | None = None
    earlier: tuple[Receipt, ...] = ()
    before: tuple[Receipt, ...] = ()

    @property
    def name(self) -> str:
        """The shard's URI."""
        return self.shard.uri


def stored_shards(store: str, version: Snapshot) -> list[Shard]:
    """The files of a version as input shards; their version tag is their sha256."""
    return [
        Shard(
            index=index,
            uri=join(store, receipt.path),
            stem=receipt.shard,
            size=receipt.bytes,
            modified=receipt.sha256,
        )
        for index, receipt in enumerate(version.shards)
    ]


def receipts_of_others(latest: Snapshot, shards: Sequence[Shard]) -> list[Receipt]:
    """Receipts of a version whose sources are not among these shards."""
    given = SourceIndex(shard.uri for shard in shards)
    stems = {shard.stem for shard in shards}  # a file of a store that is written again keeps it
    return [
        item
        for item in latest.shards
        if item.shard not in stems and not given.overlapping(item.source.uri)
    ]


def with_earlier(
    tasks: Sequence[ShardTask], receipts: Sequence[Receipt], latest: Snapshot | None
) -> list[ShardTask]:
    """The tasks, each with the receipts whose sources have files in common with it: those of its
    work, and those of the last version.

    Args:
        receipts: those of the last version, and of journals.
    """
    of_version = {receipt.path for receipt in latest.shards} if latest else set()
    by_uri: dict[str, list[Receipt]] = defaultdict(list)
    for receipt in receipts:
        by_uri[canonical(receipt.source.uri)].append(receipt)
    index = SourceIndex(by_uri)
    found = []
    for task in tasks:
        common = [item for uri in index.overlapping(task.shard.uri) for item in by_uri[uri]]
        earlier = tuple(item for item in common if item.work == task.work)
        before = {item.path: item for item in common if item.path in of_version}
        found.append(replace(task, earlier=earlier, before=tuple(before.values())))
    return found


def task_of(receipt: Receipt) -> ShardTask:
    """The task that a receipt is the result of."""
    source = receipt.source
    shard = Shard(
        index=0, uri=source.uri, stem=receipt.shard, size=source.size, modified=source.modified
    )
    return ShardTask(shard=shard, model=receipt.model, work=receipt.work)


def stems_by_uri(latest: Snapshot | None, receipts: Iterable[Receipt] = ()) -> dict[str, str]:
    """The stem that a store uses for each canonical source URI.

    Early stores named shards by their paths below the deepest folder common to all files. Shards
    of these stores keep their names.
    """
    stems = {canonical(receipt.source.uri): receipt.shard for receipt in receipts}
    if latest:
        stems |= {canonical(item.uri): item.shard for item in latest.quarantined}
        stems |= {canonical(receipt.source.uri): receipt.shard for receipt in latest.shards}
    return stems


def with_known_stems(shards: Sequence[Shard], stems: Mapping[str, str]) -> list[Shard]:
    """The shards with the stems that a store uses for them; new shards keep their own."""
    named = [replace(shard, stem=stems.get(canonical(shard.uri), shard.stem)) for shard in shards]
    count = Counter(shard.stem for shard in named)
    return [
        shard
        if count[shard.stem] == 1 or canonical(shard.uri) in stems
        else replace(shard, stem=f"{shard.stem}-{_hash(shard.uri)}")  # an early name is equal
        for shard in named
    ]


def _hash(text: str) -> str:
    return hashlib.sha256(f"again:{text}".encode()).hexdigest()[:12]
