"""Where the rows of a store come from: the shard of features or images behind each of its files.

The receipt of a file names its source, which may be a file of another store: predictions are made
of codes, codes of extracted features, and these of images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raypq.data.codes import CodeFile
from raypq.data.duplicate_ids import BATCH, hashes
from raypq.data.storage import canonical, join
from raypq.data.store import shard_writer, snapshot
from raypq.data.store.id_index_files import RUNS, SortedRun, UnusableIndexError, file_key
from raypq.data.store.snapshot import Snapshot
from raypq.errors import InputError

_MOST_FILES = 64  # code files whose ids are read where there is no index of ids


class Origins:
    """Sources of files of stores, found in the receipts of all versions.

    Args:
        stores: versions that are known already. Other stores are read where a file leads to them.
    """

    def __init__(self, stores: Sequence[Sequence[Snapshot]] = ()) -> None:
        self._sources: dict[str, str] = {}  # by name of a stored file, which is unique
        self._unread: dict[str, Iterator[Snapshot]] = {}  # by store
        for versions in stores:
            for version in versions:
                self._add(version)

    def of(self, uri: str) -> str:
        """The shard that a file of a store was made from, through all stores that can be read; the
        canonical URI itself for a file of no store."""
        passed: set[str] = set()
        while uri not in passed:
            passed.add(uri)
            uri = self._source(uri) or uri
        return canonical(uri)

    def _source(self, uri: str) -> str | None:
        store, folder, name = uri.rpartition(f"/{shard_writer.FOLDER}/")
        if not folder:
            return None
        unread = self._unread.setdefault(store, _versions(store))
        while name not in self._sources:
            version = next(unread, None)
            if version is None:
                return None
            self._add(version)
        return self._sources[name]

    def _add(self, version: Snapshot) -> None:
        for receipt in version.shards:
            self._sources[receipt.path.rpartition("/")[2]] = receipt.source.uri


def _versions(store: str) -> Iterator[Snapshot]:
    """The versions of a store that can be read, newest first; none where there is no store."""
    try:
        numbers = snapshot.versions(store)
    except (InputError, OSError):  # a store that this machine cannot reach
        return
    for number in reversed(numbers):
        try:
            yield snapshot.read(store, number)
        except InputError:
            continue


def code_files_of(codes: str, version: Snapshot, ids: pa.Array) -> dict[str, str]:
    """The code file of ids, by id as text: found by the store's index of ids, else by reading the
    ids of up to 64 files. Ids that are not found are absent.

    Args:
        ids: string or int64, as in the store.
    """
    if not len(ids):
        return {}
    try:
        return _by_index(codes, version, ids)
    except UnusableIndexError:
        return _by_reading(codes, version, ids)


def _by_index(codes: str, version: Snapshot, ids: pa.Array) -> dict[str, str]:
    runs = version.sidecars(codes).get(RUNS, ())
    if not runs:
        raise UnusableIndexError(f"{codes}: no index of ids")
    number_of = {file_key(item.path): number for number, item in enumerate(version.shards)}
    wanted = hashes(ids)
    id_of = dict(zip(wanted.tolist(), ids.cast(pa.string()).to_pylist(), strict=True))
    files: dict[str, str] = {}
    for sidecar in runs:
        run = SortedRun.open(codes, sidecar)
        run.file_numbers = np.array([number_of.get(key, -1) for key in run.keys], np.int64)
        for entries in run.matching(np.unique(wanted)):
            for entry in entries:
                path = version.shards[int(entry["file"])].path
                files.setdefault(id_of[int(entry["hash"])], join(codes, path))
    return files


def _by_reading(codes: str, version: Snapshot, ids: pa.Array) -> dict[str, str]:
    files: dict[str, str] = {}
    for receipt in version.shards[:_MOST_FILES]:
        uri = join(codes, receipt.path)
        for batch in CodeFile.open(uri, size=receipt.bytes).ids(BATCH):
            found = batch.filter(pc.is_in(batch, value_set=ids.cast(batch.type)))
            files |= dict.fromkeys(found.cast(pa.string()).to_pylist(), uri)
    return files
