"""Files on POSIX filesystems and on any storage of fsspec.

A URI is a local path or ``scheme://...``.

* ``place``: the filesystem and path of a URI. ``settings``: ``RAYPQ_STORAGE_…``.
* ``operations``: reading, listing, atomic writes and exclusive creation; implemented by ``posix``
  and ``objects``, and ``exclusive`` checks that a storage's create is exclusive.
* ``walk``: recursive listings and globs. ``tags``: version tags of files. ``shards``: the Parquet
  files of a store.
* ``parquet``: reading a Parquet file, after checks of its ``footer``.
"""

from raypq.data.storage.operations import (
    Listed,
    Storage,
    atomic_write,
    check_create,
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
    read_bytes,
    read_named,
    storage_time,
    sync_folder,
    use_storage,
    write_bytes,
    write_errors,
)
from raypq.data.storage.parquet import CheckedFile, is_parquet, open_bytes, open_parquet, stream
from raypq.data.storage.place import canonical, filesystem, is_local, join, local_path, uri_of
from raypq.data.storage.settings import StorageSettings
from raypq.data.storage.shards import Shard, list_shards, stem_of

__all__ = [
    "CheckedFile",
    "Listed",
    "Shard",
    "Storage",
    "StorageSettings",
    "atomic_write",
    "canonical",
    "check_create",
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
    "open_bytes",
    "open_parquet",
    "read_bytes",
    "read_named",
    "stem_of",
    "storage_time",
    "stream",
    "sync_folder",
    "uri_of",
    "use_storage",
    "write_bytes",
    "write_errors",
]
