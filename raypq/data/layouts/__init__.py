"""Layouts of feature stores: which files are shards, and how the rows of one are read.

``listing`` finds the shards below folders. ``open_shard`` opens one as a ``ShardFile``, whatever
its layout: ``parquet``, ``npy``, ``npz``, ``lance``. A new layout is one file with a ``Source``,
and its lines here and in ``listing``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from raypq.config import Columns
from raypq.data.layouts import lance, npy, npz, parquet
from raypq.data.layouts.listing import list_features
from raypq.data.layouts.shard_file import ShardFile
from raypq.data.storage import Shard, digest, open_parquet

__all__ = ["ShardFile", "content_digest", "list_features", "open_shard"]

_ARRAYS = {".npy": npy.open_source, ".npz": npz.open_source}


@contextmanager
def open_shard(shard: Shard, columns: Columns) -> Iterator[ShardFile]:
    """Opens a shard of any layout for streaming reads.

    Raises:
        InputError: the file is missing, damaged, or not of its layout.
    """
    with ExitStack() as stack:
        if shard.uri.lower().endswith(lance.SUFFIX):
            yield ShardFile(stack.enter_context(lance.open_source(shard)), shard, columns)
            return
        open_arrays = _ARRAYS.get(shard.uri[-4:].lower())
        if open_arrays is None:
            yield ShardFile(stack.enter_context(parquet.open_source(shard)), shard, columns)
            return
        metadata = None
        if shard.metadata:
            file = stack.enter_context(open_parquet(shard.metadata))
            metadata = parquet.ParquetSource(file)
        source = stack.enter_context(open_arrays(shard, columns, metadata))
        yield ShardFile(source, shard, columns)


def content_digest(shard: Shard) -> str:
    """sha256 of a shard's content: of its file; of both files of an array; of a fragment's tag,
    since a fragment's files never change."""
    if shard.uri.lower().endswith(lance.SUFFIX):
        return hashlib.sha256(shard.modified.encode()).hexdigest()
    if not shard.metadata:
        return digest(shard.uri)
    both = f"{digest(shard.uri)} {digest(shard.metadata)}"
    return hashlib.sha256(both.encode()).hexdigest()
