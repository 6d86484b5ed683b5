"""Numbers of a column of the source of a code store, by row."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raypq.config import Columns
from raypq.data.ids import IdKind
from raypq.data.ids import read as read_ids
from raypq.data.layouts import ShardFile, open_shard
from raypq.data.storage import Shard
from raypq.errors import InputError
from raypq.stages.retrieval.rerank import check_ids

_BATCH_ROWS = 1 << 16


def check_column(shard: Shard, columns: Columns, name: str) -> None:
    """Checks that a source file has a column of numbers.

    Raises:
        InputError: no such column, or one of another type.
    """
    with open_shard(shard, columns) as file:
        _check_type(file, name, f"{shard.uri}, column '{name}'")


def _check_type(file: ShardFile, name: str, where: str) -> None:
    kind = file.field(name).type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise InputError(
            where,
            expected="numbers, of which the largest or smallest of a group is kept (keep)",
            found=str(kind),
        )


def read_numbers(
    shard: Shard,
    columns: Columns,
    name: str,
    rows: NDArray[np.int64],
    ids: pa.Array,
    kind: IdKind,
) -> NDArray[np.float64]:
    """The values [n] of some rows, ascending, of a source file.

    Args:
        ids: of these rows in the code store.

    Raises:
        InputError: no such column, another type than numbers, a row without a value, or other ids
            than those of the code store.
    """
    values = np.empty(len(rows), np.float64)
    where = f"{shard.uri}, column '{name}'"
    with open_shard(shard, columns) as file:
        _check_type(file, name, where)
        start = 0
        for batch in file.batches(_BATCH_ROWS, [columns.id, name]):
            low, high = np.searchsorted(rows, [start, start + len(batch)])
            if low < high:
                index = rows[low:high] - start
                names = read_ids(batch.column(columns.id), kind, where=shard.uri, row0=start)
                at = pa.array(index)
                check_ids(shard, names.take(at), ids.slice(low, high - low), rows[low:high])
                some = _float64(batch.column(name).take(at), where)
                absent = pc.or_kleene(pc.is_null(some), pc.is_nan(some.fill_null(0)))
                if pc.any(absent).as_py():
                    first = int(np.flatnonzero(absent.to_numpy(zero_copy_only=False))[0])
                    raise InputError(
                        f"{where}, row {rows[low + first]}",
                        expected="a number, to choose the image of a group that is kept (keep)",
                        found=str(some[first].as_py()),
                    )
                values[low:high] = some.to_numpy()
            start += len(batch)
            if not len(rows) or start > rows[-1]:
                break
    if len(rows) and start <= rows[-1]:
        raise InputError(shard.uri, expected=f"a row {rows[-1]}", found=f"{start} rows")
    return values


def _float64(values: pa.Array, where: str) -> pa.Array:
    try:
        return values.cast(pa.float64())
    except pa.ArrowInvalid:
        raise InputError(
            where,
            expected="numbers that float64 holds exactly, of which the largest or smallest is kept "
            "(keep)",
            found="an integer beyond 2⁵³",
        ) from None
