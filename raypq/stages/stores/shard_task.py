"""Tasks of a run: input shards with the model and the work id of their output."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

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
    of_version = set(latest.shards.values("path")) if latest else set()
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


class KeptTasks(Sequence[ShardTask]):
    """Tasks of shards that are kept under one model and work, made when they are asked for."""

    def __init__(self, shards: list[Shard], *, model: str, work: str) -> None:
        self._shards, self._model, self._work = shards, model, work

    def __len__(self) -> int:
        return len(self._shards)

    @overload
    def __getitem__(self, index: int) -> ShardTask: ...
    @overload
    def __getitem__(self, index: slice) -> list[ShardTask]: ...
    def __getitem__(self, index: int | slice) -> ShardTask | list[ShardTask]:
        if isinstance(index, slice):
            return [self._task(shard) for shard in self._shards[index]]
        return self._task(self._shards[index])

    def _task(self, shard: Shard) -> ShardTask:
        return ShardTask(shard=shard, model=self._model, work=self._work)

    def add(self, shards: Iterable[Shard]) -> None:
        """Adds the tasks of shards."""
        self._shards.extend(shards)


def known_stems(
    shards: Sequence[Shard], latest: Snapshot | None, receipts: Iterable[Receipt] = ()
) -> list[str | None]:
    """The stem that a store uses for the source of each shard; None for a source that it lacks.

    Early stores named shards by their paths below the deepest folder common to all files. Shards
    of these stores keep their names.

    Args:
        receipts: of journals.
    """
    others = {canonical(receipt.source.uri): receipt.shard for receipt in receipts}
    if latest:
        others |= {canonical(item.uri): item.shard for item in latest.quarantined}
    stems: list[str | None] = [others.get(canonical(shard.uri)) for shard in shards]
    if latest is None or not len(latest.shards):
        return stems
    text = pa.large_string()
    sources = pa.array(map(canonical, latest.shards.values("source_uri")), text)
    uris = pa.array((canonical(shard.uri) for shard in shards), text)
    # Of several shards of one source the last one counts.
    backwards = pc.index_in(uris, value_set=sources.take(pa.array(range(len(sources))[::-1])))
    found = np.flatnonzero(np.asarray(pc.is_valid(backwards)))
    rows = len(sources) - 1 - backwards.drop_null().to_numpy()
    names = latest.shards.select(rows.astype(np.int64)).values("shard")
    for number, name in zip(found.tolist(), names, strict=True):
        own = shards[number].stem  # most are equal, and one text of each is enough
        stems[number] = own if name == own else name
    return stems


def with_known_stems(shards: Sequence[Shard], stems: Sequence[str | None]) -> list[Shard]:
    """The shards with the stems that a store uses for them; new shards keep their own."""
    named = [
        shard if stem in (None, shard.stem) else replace(shard, stem=stem)
        for shard, stem in zip(shards, stems, strict=True)
    ]
    if len({shard.stem for shard in named}) == len(named):
        return named
    count = Counter(shard.stem for shard in named)
    return [
        shard
        if count[shard.stem] == 1 or stem is not None
        else replace(shard, stem=f"{shard.stem}-{_hash(shard.uri)}")  # an early name is equal
        for shard, stem in zip(named, stems, strict=True)
    ]


def _hash(text: str) -> str:
    return hashlib.sha256(f"again:{text}".encode()).hexdigest()[:12]
