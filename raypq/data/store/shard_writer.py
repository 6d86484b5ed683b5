"""Writing one output file a shard, hashed on the way, with a receipt."""

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
from raypq.data.storage import Shard, canonical, join, replacing
from raypq.data.store.names import Id, InsidePath, Stem
from raypq.data.store.shard_stats import ShardStats

_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST = 2**63 - 1  # rows, or bytes, that a file can have
Count = Annotated[int, Field(ge=0, le=_MOST)]
_UNKNOWN = "None"  # what early stores say of files that no tag was read of
ROW_GROUP = 1 << 17  # rows; large enough to compress, small enough to hold


class Source(Settings):
    """The input shard that an output file was made from; ``sha256`` only where it was asked for.

    Attributes:
        modified: the version tag, as in ``Shard``.
    """

    uri: str
    size: int
    modified: str
    sha256: str | None = None

    @classmethod
    def of(cls, shard: Shard, *, sha256: str | None = None) -> Source:
        """What is known of an input shard."""
        return cls(uri=shard.uri, size=shard.size, modified=shard.modified, sha256=sha256)

    def same_file(self, other: Source) -> bool:
        """Whether both speak of one file in one state: URI, size and version tag.

        A tag that is a sha256 (files of a raypq store have it) tells the content wherever it lies.
        An empty tag belongs to sources whose content is a part of the work.
        """
        if self.modified == _UNKNOWN or (self.size, self.modified) != (other.size, other.modified):
            return False
        by_content = not self.modified or _SHA256.fullmatch(self.modified)
        same = self.uri == other.uri or canonical(self.uri) == canonical(other.uri)
        return same or bool(by_content)


class Receipt(Settings):
    """What a worker answers for one finished shard.

    Attributes:
        model: fingerprint of the model. work: names the model and all settings that the content
            depends on: the same work on the same source gives the same content.
        stats: how well the model fits the shard; of codes only, and not in early stores.
        ids: the type of its ids; not in early stores, nor where they are integers that such a
            store keeps as text.
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


class HashingFile:
    """A file to write that hashes and counts what passes through."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.bytes = 0
        self.closed = False

    def write(self, data: bytes) -> int:
        """Writes and hashes; returns how many bytes."""
        self._file.write(data)
        self.digest.update(data)
        self.bytes += len(data)
        return len(data)

    def flush(self) -> None:
        """Nothing: the file is flushed and synced when it is complete."""

    def readable(self) -> bool:
        """Never."""
        return False

    def writable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Never."""
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

    The file takes its name when it is complete and synced, and counts only once a snapshot names
    it: neither a crash nor a full disk leaves anything half done.
    """
    path = f"data/{shard.stem}.{uuid.uuid4().hex}.parquet"
    rows, held = 0, 0
    waiting: list[pa.RecordBatch] = []
    with replacing(join(store, path)) as file:
        sink = HashingFile(file)
        with pq.ParquetWriter(sink, schema, write_page_checksum=True, **options) as writer:
            for batch in batches:
                waiting.append(batch)
                held += len(batch)
                rows += len(batch)
                if held >= ROW_GROUP:
                    writer.write_table(pa.Table.from_batches(waiting, schema), ROW_GROUP)
                    waiting, held = [], 0
            writer.write_table(pa.Table.from_batches(waiting, schema), ROW_GROUP)
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
