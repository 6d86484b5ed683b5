"""Labels of single rows in a file of their own: Parquet with ids and labels (``--labels``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raypq.config import Columns
from raypq.data import arrays, ids, texts
from raypq.data.ids import IdKind
from raypq.data.storage import open_parquet
from raypq.data.unknown_classes import short
from raypq.errors import InputError


@dataclass(frozen=True, kw_only=True, eq=False)
class RowLabels:
    """Labels by id.

    Attributes:
        ids: unique, of the type of a store. labels: as many; null where a row has none.
    """

    uri: str
    ids: pa.Array
    labels: pa.StringArray

    @classmethod
    def open(cls, uri: str, columns: Columns, kind: IdKind) -> Self:
        """Reads a file.

        Args:
            columns: the names of its columns. kind: the type of the store's ids.

        Raises:
            InputError: no such file or column, ids of another type, or an id that occurs twice.
        """
        with open_parquet(uri) as file:
            for name in (columns.id, columns.label):
                file.field(name)
            table = file.read(columns=[columns.id, columns.label])
        where = f"{uri}, column '{columns.id}'"
        keys = ids.read(arrays.whole(table.column(columns.id)), kind, where=where)
        where = f"{uri}, column '{columns.label}'"
        labels = texts.strings(arrays.whole(table.column(columns.label)), where=where, nulls=True)
        _refuse_repeated(keys, uri)
        return cls(uri=uri, ids=keys, labels=labels)

    def positions(self, keys: pa.Array) -> NDArray[np.int64]:
        """The row of each id [n] in the file; -1 for one that it lacks."""
        found = pc.index_in(keys, value_set=self.ids).fill_null(-1)
        return found.to_numpy(zero_copy_only=False).astype(np.int64)


def _refuse_repeated(keys: pa.Array, uri: str) -> None:
    counts = pc.value_counts(keys)
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(repeated):
        name = repeated.field("values")[0].as_py()
        shown = short(name) if isinstance(name, str) else name
        raise InputError(
            uri,
            expected="each id once, with its label",
            found=f"{shown!r} {repeated.field('counts')[0].as_py()} times ({len(repeated)} such "
            "id(s)); keep one row of each",
        )
