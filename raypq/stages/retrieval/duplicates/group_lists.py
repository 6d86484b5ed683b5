"""Lists of the images of a store that are kept, and of those that are dropped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raypq.data import intermediate
from raypq.data.codes import CodeFile
from raypq.data.duplicate_ids import hashes
from raypq.data.id_list import check_lines, write_list
from raypq.data.storage import Shard
from raypq.stages.retrieval.duplicates.group_edges import Files

_ID_ROWS = 1 << 17


@dataclass(frozen=True, kw_only=True)
class CheckTask:
    """Code files whose ids are to be on a list."""

    shards: Sequence[Shard]

    @property
    def name(self) -> str:
        """Name for errors and logs."""
        return self.shards[0].uri


@dataclass(frozen=True, kw_only=True)
class ListTask:
    """Lists to write.

    Attributes:
        dropped: paths of the numbers of rows that are dropped.
        keep_list, drop_list: text files to write.
    """

    dropped: Sequence[str]
    rows: int
    keep_list: str | None
    drop_list: str | None

    @property
    def name(self) -> str:
        """Name for errors and logs."""
        return self.keep_list or self.drop_list or "preferred ids"


@dataclass(frozen=True, kw_only=True, eq=False)
class Listed:
    """What was written.

    Attributes:
        lists: bytes and sha256 of each list, by its field of the job.
        repeated: ids of dropped images that others of the store have, too; they are not on the
            drop list. unknown: preferred ids that the store lacks.
    """

    lists: Mapping[str, Mapping[str, Any]]
    repeated: pa.Array
    unknown: pa.Array


def check(task: CheckTask) -> None:
    """Refuses ids that a line of a list cannot hold.

    Raises:
        InputError: naming the code file and the id.
    """
    for shard in task.shards:
        file = CodeFile.open(shard.uri, size=shard.size)
        if file.rows:
            check_lines(file.ids(_ID_ROWS), shard.uri)


def write_lists(
    store: str, task: ListTask, files: Files, id_type: pa.DataType, preferred: pa.Array
) -> Listed:
    """Writes the lists, and finds which preferred ids the store has."""
    gone = np.zeros(task.rows, bool)
    for path in task.dropped:
        gone[intermediate.read(store, path)["row"].to_numpy()] = True
    lists: dict[str, Mapping[str, Any]] = {}
    repeated = unknown = pa.array([], id_type)
    if task.keep_list is not None:
        lists["keep_list"] = write_list(task.keep_list, _ids(files, ~gone))
    if task.drop_list is not None:
        dropped = pa.concat_arrays([pa.array([], id_type), *_ids(files, gone)]).unique()
        repeated = _stay_too(files, gone, dropped)
        safe = dropped.filter(pc.invert(pc.is_in(dropped, value_set=repeated)))
        lists["drop_list"] = write_list(task.drop_list, [safe.sort()])
    if len(preferred):
        has = np.zeros(len(preferred), bool)
        for ids in _ids(files, np.ones(task.rows, bool)):
            has |= pc.is_in(preferred, value_set=ids).to_numpy(zero_copy_only=False)
        unknown = preferred.filter(pa.array(~has))
    return Listed(lists=lists, repeated=repeated, unknown=unknown)


def _ids(files: Files, chosen: NDArray[np.bool_]) -> Iterator[pa.Array]:
    """The ids of chosen rows, in parts, in the order of the store."""
    for shard, start in files:
        file = CodeFile.open(shard.uri, size=shard.size)
        if not chosen[start : start + file.rows].any():
            continue
        row = start
        for ids in file.ids(_ID_ROWS):
            yield ids.filter(pa.array(chosen[row : row + len(ids)]))
            row += len(ids)


def _stay_too(files: Files, gone: NDArray[np.bool_], dropped: pa.Array) -> pa.Array:
    """Which ids of dropped rows other rows have, too."""
    ordered = np.sort(hashes(dropped))
    found = [dropped[:0]]
    for ids in _ids(files, ~gone):
        of_rows = hashes(ids)
        at = np.searchsorted(ordered, of_rows)
        at[at == len(ordered)] = 0
        if len(ordered) and (likely := ordered[at] == of_rows).any():
            found.append(ids.filter(pa.array(likely)))
    some = pa.concat_arrays(found).unique()
    return some.filter(pc.is_in(some, value_set=dropped))
