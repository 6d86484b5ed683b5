"""Layouts of feature stores: which files are shards, and how the rows of one are read.

``listing`` finds the shards below folders. ``open_shard`` opens one as a ``ShardFile``, whatever
its layout: ``parquet``, ``npy``, ``npz``, ``lance``; for images also ``tar`` and ``image_folder``.
A new layout is one file with a ``Source``, and its lines here and in ``listing``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from raypq.config import Columns
from raypq.data.layouts import image_folder, lance, npy, npz, parquet, tar
from raypq.data.layouts.listing import list_features
from raypq.data.layouts.shard_file import ShardFile
from raypq.data.layouts.source import Source
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
        yield ShardFile(_open_source(shard, columns, stack), shard, columns)


def _open_source(shard: Shard, columns: Columns, stack: ExitStack) -> Source:
    suffix = os.path.splitext(shard.uri.lower())[1]
    if suffix == lance.SUFFIX:
        return stack.enter_context(lance.open_source(shard))
    if suffix == image_folder.SUFFIX:
        return stack.enter_context(image_folder.open_source(shard, columns))
    if suffix == tar.SUFFIX:
        return stack.enter_context(tar.open_source(shard, columns))
    open_arrays = _ARRAYS.get(suffix)
    if open_arrays is None:
        return stack.enter_context(parquet.open_source(shard))
    metadata = None
    if shard.metadata:
        metadata = parquet.ParquetSource(stack.enter_context(open_parquet(shard.metadata)))
    return stack.enter_context(open_arrays(shard, columns, metadata))


def content_digest(shard: Shard) -> str:
    """sha256 of a shard's content: of its file; of both files of an array; of each file of a folder
    of images; of a fragment's tag, since a fragment's files never change."""
    if shard.uri.lower().endswith(lance.SUFFIX):
        return hashlib.sha256(shard.modified.encode()).hexdigest()
    if shard.files is not None:
        return image_folder.content_digest(shard)
    if not shard.metadata:
        return digest(shard.uri)
    both = f"{digest(shard.uri)} {digest(shard.metadata)}"
    return hashlib.sha256(both.encode()).hexdigest()
