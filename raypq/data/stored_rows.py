"""Class embeddings of a large table, in a temporary file of this process."""

from __future__ import annotations

import hashlib
from threading import Lock
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq.data import class_columns
from raypq.data.storage import open_parquet
from raypq.data.storage.parquet import CheckedFile, stream
from raypq.errors import InputError
from raypq.kernels.stored_tables import RowFile

_BATCH = 8192  # rows that are decoded at once
_SPREAD = 8  # times as many rows may be read as are wanted, before they are read one by one


class StoredRows:
    """Embeddings [T, da], float32, in a file; rows are read where they are indexed.

    A copy in another process reads them from the class table again, once they are wanted.

    Args:
        rows: None where they are not read yet.

    Attributes:
        digest: sha256 of the embeddings.
    """

    def __init__(self, uri: str, rows: RowFile | None, shape: tuple[int, int], digest: str) -> None:
        self.uri, self.shape, self.digest = uri, shape, digest
        self._rows, self._lock = rows, Lock()

    @classmethod
    def read(cls, file: CheckedFile, uri: str, ids: pa.StringArray) -> tuple[Self, pa.BooleanArray]:
        """The embeddings of a table that are not null, and which rows have one [T].

        Raises:
            InputError: as ``class_columns.embeddings``.
        """
        field, valid, first = file.schema_arrow.field("embedding"), [], 0
        rows: RowFile | None = None
        at, width, content = 0, 0, hashlib.sha256()
        for batch in stream(file, _BATCH, ["embedding"]):
            column = batch.column("embedding")
            valid.append(column.is_valid())
            of = ids.slice(at, len(column)).filter(valid[-1])
            table = pa.Table.from_arrays([column.filter(valid[-1])], schema=pa.schema([field]))
            at += len(column)
            E = class_columns.embeddings(table, uri, of)
            if E is None or not len(E):
                continue
            if rows is None:
                rows, width = RowFile(E.shape[1]), E.shape[1]
            class_columns.check_width(E, width, uri)
            rows.write(first, E)
            content.update(np.ascontiguousarray(E).data)
            first += len(E)
        mask = pa.chunked_array(valid, pa.bool_()).combine_chunks()
        return cls(uri, rows or RowFile(0), (first, width), content.hexdigest()), mask

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.uri, None, self.shape, self.digest)

    def _file(self) -> RowFile:
        """The rows.

        Raises:
            InputError: they are read again, and the table has others by now.
        """
        with self._lock:
            if self._rows is None:
                with open_parquet(self.uri) as file:
                    ids = pa.nulls(file.metadata.num_rows, pa.string())
                    read = type(self).read(file, self.uri, ids)[0]
                if read.digest != self.digest:
                    raise InputError(
                        self.uri,
                        expected="the class embeddings that the job began with",
                        found="others; leave the table as it is until the job ends",
                    )
                self._rows = read._rows
            assert self._rows is not None, "read just now"
            return self._rows

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """One row [da], or several."""
        rows = self._file()
        if isinstance(index, slice):
            first, end, step = index.indices(len(self))
            return rows.read(first, max(first, end))[::step]
        if np.ndim(index) == 0:
            return rows.read(int(index), int(index) + 1)[0]
        at = np.asarray(index)
        if not len(at):
            return np.empty((0, self.shape[1]), np.float32)
        first, end = int(at.min()), int(at.max()) + 1
        if end - first <= _SPREAD * len(at):
            return rows.read(first, end)[at - first]
        return np.stack([rows.read(int(t), int(t) + 1)[0] for t in at])
