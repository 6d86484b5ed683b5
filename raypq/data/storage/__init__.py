"""Files on any storage that fsspec knows; local paths take the short way.

A URI is a local path or ``scheme://...``. One room for each purpose: ``place`` (what a URI names),
``settings``, ``operations`` (what the commit protocol asks of storage; replaceable in one place),
``posix`` and ``objects`` (how the two kinds do it), ``exclusive`` (whether a storage creates a file
once), ``walk` (every file below a folder), ``tags``
(what tells two states of a file apart), ``shards`` (which files make up a store) and ``parquet``
(reading one of them, its footer checked first).
"""

from raypq.data.storage.operations import (
    Listed,
    Storage,
    create,
    create_once,
    delete,
    digest,
    exists,
    file_size,
    list_files,
    list_folders,
    list_names,
    named_lines,
    now,
    prepare,
    read_bytes,
    read_named,
    replaced,
    replacing,
    sync_folder,
    write_bytes,
)
from raypq.data.storage.parquet import CheckedFile, is_parquet, open_parquet, stream
from raypq.data.storage.place import canonical, filesystem, is_local, join, local_path, uri_of
from raypq.data.storage.settings import StorageSettings
from raypq.data.storage.shards import Shard, list_shards, stem_of

__all__ = [
    "CheckedFile",
    "Listed",
    "Shard",
    "Storage",
    "StorageSettings",
    "canonical",
    "create",
    "create_once",
    "delete",
    "digest",
    "exists",
    "file_size",
    "filesystem",
    "is_local",
    "is_parquet",
    "join",
    "list_files",
    "list_folders",
    "list_names",
    "list_shards",
    "local_path",
    "named_lines",
    "now",
    "open_parquet",
    "prepare",
    "read_bytes",
    "read_named",
    "replaced",
    "replacing",
    "stem_of",
    "stream",
    "sync_folder",
    "uri_of",
    "write_bytes",
]
