"""Numbers of a column of the source of a code store, by row."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raypq.config import Columns
from raypq.data.ids import IdKind
from raypq.data.ids import read as read_ids
from raypq.data.layouts import open_shard
from raypq.data.storage import Shard
from raypq.errors import InputError
from raypq.stages.retrieval.rerank import check_ids

_BATCH_ROWS = 1 << 16


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
        field = file.field(name)
        if not (pa.types.is_integer(field.type) or pa.types.is_floating(field.type)):
            raise InputError(
                where,
                expected="numbers, of which the largest or smallest of a group is kept (keep)",
                found=str(field.type),
            )
        start = 0
        for batch in file.batches(_BATCH_ROWS, [columns.id, name]):
            low, high = np.searchsorted(rows, [start, start + len(batch)])
            if low < high:
                index = rows[low:high] - start
                names = read_ids(batch.column(columns.id), kind, where=shard.uri, row0=start)
                at = pa.array(index)
                check_ids(shard, names.take(at), ids.slice(low, high - low), rows[low:high])
                some = batch.column(name).take(at).cast(pa.float64(), safe=False)
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
