"""Writing the output file of a shard, hashed on the way; its receipt."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Iterable, Mapping
from typing import IO, Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from raypq.config import Settings
from raypq.data.ids import IdKind
from raypq.data.storage import Shard, atomic_write, canonical, join
from raypq.data.store.names import Id, InsidePath, Stem
from raypq.data.store.shard_stats import ShardStats

_SHA256 = re.compile(r"[0-9a-f]{64}")
Count = Annotated[int, Field(ge=0, le=2**63 - 1)]  # of rows or bytes
UNKNOWN_TAG = "None"  # in early stores: the tag of a file whose tag was not read
FOLDER = "data"  # of a store: its files
ROW_GROUP = 1 << 17  # rows; large enough to compress, small enough to hold


class Source(Settings):
    """The input shard of an output file.

    Attributes:
        modified: the version tag, as in ``Shard``.
        sha256: of the content, where ``compare: content`` was set.
    """

    uri: str
    size: int
    modified: str
    sha256: str | None = None

    @classmethod
    def of(cls, shard: Shard, *, sha256: str | None = None) -> Source:
        """The source entry of an input shard."""
        return cls(uri=shard.uri, size=shard.size, modified=shard.modified, sha256=sha256)

    def same_file(self, other: Source) -> bool:
        """Whether both are the same version of a file: equal URI, size and version tag.

        Where the tag is a sha256 (as of files of a raypq store), the URI may differ. An empty tag
        means that the work id covers the content.
        """
        if self.modified == UNKNOWN_TAG or (self.size, self.modified) != (
            other.size,
            other.modified,
        ):
            return False
        by_content = not self.modified or _SHA256.fullmatch(self.modified)
        same = self.uri == other.uri or canonical(self.uri) == canonical(other.uri)
        return same or bool(by_content)


class RunCounts(Settings):
    """Images of a shard by what the run did with them.

    Attributes:
        left_out: that could not be decoded. unchanged: whose values were kept.
        kept: of the last version, with their values kept; None where images were not compared with
            it. again: of the last version, with the same content, but computed again.
        changed: of the last version, with another content.
        known_left_out: of the last version, and left out.
    """

    left_out: Count = 0
    unchanged: Count = 0
    kept: Count | None = None
    again: Count = 0
    changed: Count = 0
    known_left_out: Count = 0


class Receipt(Settings):
    """A worker's record of one finished shard.

    Attributes:
        model: fingerprint of the model.
        work: the work id, a digest of the model and all settings that the content depends on: the
            same work on the same source gives the same content.
        stats: how well the model fits the shard. Codes only; absent in early stores.
        ids: the type of its ids. Absent in early stores, and for integers that such a store keeps
            as text.
        counts: of its images. Of journals only, so that a rerun counts what an interrupted run did.
    """

    shard: Stem
    path: InsidePath
    bytes: Count
    rows: Count
    sha256: str
    model: Id
    work: Id
    source: Source
    stats: ShardStats | None = None
    ids: IdKind | None = None
    counts: RunCounts | None = None


class HashingFile:
    """A file to write that hashes and counts its bytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.bytes = 0
        self.closed = False

    def write(self, data: bytes) -> int:
        """Writes and hashes; returns the number of bytes."""
        self._file.write(data)
        self.digest.update(data)
        self.bytes += len(data)
        return len(data)

    def flush(self) -> None:
        """Does nothing: the file is flushed and synced when it is complete."""

    def readable(self) -> bool:
        """False."""
        return False

    def writable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """False."""
        return False


def write_shard(
    store: str,
    shard: Shard,
    *,
    model: str,
    work: str,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    options: Mapping[str, Any],
) -> Receipt:
    """Writes ``data/<stem>.<uuid>.parquet`` below ``store``; the name is never used twice.

    The file gets its name when it is complete and synced, and belongs to the store only once a
    snapshot names it: a crash or a full disk leaves no partial output.
    """
    path = f"{FOLDER}/{shard.stem}.{uuid.uuid4().hex}.parquet"
    rows, pending_rows = 0, 0
    pending: list[pa.RecordBatch] = []
    with atomic_write(join(store, path)) as file:
        sink = HashingFile(file)
        with pq.ParquetWriter(sink, schema, write_page_checksum=True, **options) as writer:
            for batch in batches:
                pending.append(batch)
                pending_rows += len(batch)
                rows += len(batch)
                if pending_rows >= ROW_GROUP:
                    writer.write_table(pa.Table.from_batches(pending, schema), ROW_GROUP)
                    pending, pending_rows = [], 0
            writer.write_table(pa.Table.from_batches(pending, schema), ROW_GROUP)
    return Receipt(
        shard=shard.stem,
        path=path,
        bytes=sink.bytes,
        rows=rows,
        sha256=sink.digest.hexdigest(),
        model=model,
        work=work,
        source=Source.of(shard),
    )
