"""Tasks of a run: a shard, and what is to be done to it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from raypq.data.storage import Shard, canonical, join
from raypq.data.store.shard_writer import Receipt
from raypq.data.store.snapshot import Snapshot


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """One input shard and what is to be done to it.

    Attributes:
        model: fingerprint of the model. work: names what is done (``raypq.stages.stores.work_id``).
        kept: its output file, where that is there already.
    """

    shard: Shard
    model: str = ""
    work: str = ""
    kept: Receipt | None = None

    @property
    def name(self) -> str:
        """The shard's URI."""
        return self.shard.uri


def stored_shards(store: str, version: Snapshot) -> list[Shard]:
    """The files of a version as shards to be read; their sha256 tells them apart."""
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


def not_among(latest: Snapshot, shards: Sequence[Shard]) -> list[Receipt]:
    """The shards of a version that were made of other files than these."""
    given = {canonical(shard.uri) for shard in shards}
    return [item for item in latest.shards if canonical(item.source.uri) not in given]


def kept_task(receipt: Receipt) -> ShardTask:
    """The task of a shard as its receipt has it."""
    source = receipt.source
    shard = Shard(
        index=0, uri=source.uri, stem=receipt.shard, size=source.size, modified=source.modified
    )
    return ShardTask(shard=shard, model=receipt.model, work=receipt.work)


def known_stems(latest: Snapshot | None, receipts: Iterable[Receipt] = ()) -> dict[str, str]:
    """The stem that a store has for each canonical source URI.

    Early stores named shards by their paths below the deepest folder common to all files. A shard
    that is known by its URI keeps the name that it has.
    """
    found = {canonical(receipt.source.uri): receipt.shard for receipt in receipts}
    if latest:
        found |= {canonical(item.uri): item.shard for item in latest.quarantined}
        found |= {canonical(receipt.source.uri): receipt.shard for receipt in latest.shards}
    return found


def under_known_stems(shards: Sequence[Shard], stems: Mapping[str, str]) -> list[Shard]:
    """The shards under the stems that a store has for them; of new ones under their own."""
    found = [replace(shard, stem=stems.get(canonical(shard.uri), shard.stem)) for shard in shards]
    count = Counter(shard.stem for shard in found)
    return [
        shard
        if count[shard.stem] == 1 or canonical(shard.uri) in stems
        else replace(shard, stem=f"{shard.stem}-{_hash(shard.uri)}")  # taken by a file's old name
        for shard in found
    ]


def _hash(text: str) -> str:
    return hashlib.sha256(f"again:{text}".encode()).hexdigest()[:12]
