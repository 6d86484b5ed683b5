"""Lists of the images of a store that are kept, and of those that are dropped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

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

ListKind = Literal["keep_list", "drop_list", "preferred"]

_ID_ROWS = 1 << 17
_FIRST_BITS = 24
_OTHER_BITS = np.uint64(64 - _FIRST_BITS)


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
    """A list to write, or preferred ids to look for.

    Attributes:
        dropped: paths of the numbers of rows that are dropped. uri: of the list.
    """

    kind: ListKind
    uri: str
    dropped: Sequence[str]
    rows: int

    @property
    def name(self) -> str:
        """Name for errors and logs."""
        return self.uri


@dataclass(frozen=True, kw_only=True, eq=False)
class Listed:
    """What was written or found.

    Attributes:
        kind: of the task. written: bytes and sha256 of a list.
        repeated: ids of dropped images that others of the store have, too; they are not on the
            drop list. unknown: preferred ids that the store lacks.
    """

    kind: str
    written: Mapping[str, Any]
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


def write(
    store: str, task: ListTask, files: Files, id_type: pa.DataType, preferred: pa.Array
) -> Listed:
    """Writes a list, or finds which preferred ids the store lacks."""
    gone = np.zeros(task.rows, bool)
    for path in task.dropped:
        gone[intermediate.read(store, path)["row"].to_numpy()] = True
    written: Mapping[str, Any] = {}
    repeated = unknown = pa.array([], id_type)
    if task.kind == "keep_list":
        written = write_list(task.uri, _ids(files, ~gone))
    elif task.kind == "drop_list":
        repeated, twice = _repeated(files, gone, id_type)
        written = write_list(task.uri, _once(_ids(files, gone), repeated, twice))
    else:
        has = np.zeros(len(preferred), bool)
        for ids in _ids(files, np.ones(task.rows, bool)):
            has |= pc.is_in(preferred, value_set=ids).to_numpy(zero_copy_only=False)
        unknown = preferred.filter(pa.array(~has))
    return Listed(kind=task.kind, written=written, repeated=repeated, unknown=unknown)


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


def _repeated(
    files: Files, gone: NDArray[np.bool_], id_type: pa.DataType
) -> tuple[pa.Array, pa.Array]:
    """Which ids of dropped rows other rows have, too; and which several dropped rows have.

    Ids are compared by 8 bytes of hash each, and then those that may be equal by themselves.
    """
    parts = [np.empty(0, np.uint64), *(hashes(ids) for ids in _ids(files, gone))]
    ordered = np.sort(np.concatenate(parts))
    none = pa.array([], id_type)
    kept = pa.concat_arrays([none, *_with(_ids(files, ~gone), ordered)]).unique()
    same = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    dropped = pa.concat_arrays([none, *_with(_ids(files, gone), same)])
    counts = dropped.value_counts()
    twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    if not len(kept):
        return none, twice
    both = [ids.filter(pc.is_in(ids, value_set=kept)) for ids in _ids(files, gone)]
    return pa.concat_arrays([none, *both]).unique(), twice


def _with(parts: Iterable[pa.Array], ordered: NDArray[np.uint64]) -> Iterator[pa.Array]:
    """The ids whose hash is among these, which are sorted."""
    if not len(ordered):
        return
    begins = np.zeros(1 << _FIRST_BITS, bool)  # of hashes, which rule most ids out
    begins[ordered >> _OTHER_BITS] = True
    for ids in parts:
        of_rows = hashes(ids)
        likely = np.flatnonzero(begins[of_rows >> _OTHER_BITS])
        at = np.minimum(np.searchsorted(ordered, of_rows[likely]), len(ordered) - 1)
        yield ids.take(pa.array(likely[ordered[at] == of_rows[likely]]))


def _once(parts: Iterable[pa.Array], without: pa.Array, twice: pa.Array) -> Iterator[pa.Array]:
    """The ids but some, and those that occur twice only the first time."""
    left = twice.filter(pc.invert(pc.is_in(twice, value_set=without)))
    for ids in parts:
        ids = ids.filter(pc.invert(pc.is_in(ids, value_set=without)))
        if len(left):
            often = pc.is_in(ids, value_set=twice)
            first = ids.filter(often).unique()
            first = first.filter(pc.is_in(first, value_set=left))
            left = left.filter(pc.invert(pc.is_in(left, value_set=first)))
            yield first
            ids = ids.filter(pc.invert(often))
        elif len(twice):
            ids = ids.filter(pc.invert(pc.is_in(ids, value_set=twice)))
        yield ids
