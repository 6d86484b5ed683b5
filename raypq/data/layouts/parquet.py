"""Parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa

from raypq.data.layouts.source import take_from_groups
from raypq.data.storage import CheckedFile, Shard, open_parquet
from raypq.data.storage.parquet import stored_bytes


class ParquetSource:
    """The rows of a Parquet file."""

    def __init__(self, file: CheckedFile) -> None:
        self._file, self.uri = file, file.uri

    @property
    def schema(self) -> pa.Schema:
        """The file's schema."""
        return self._file.schema_arrow

    @property
    def group_rows(self) -> Sequence[int]:
        """Rows of each row group."""
        return [rows for rows, _ in self._file.footer.groups]

    def batches(
        self, columns: Sequence[str] | None, size: int, group: int | None
    ) -> Iterator[pa.RecordBatch]:
        """See ``Source``."""
        groups = None if group is None else [group]
        return self._file.iter_batches(size, groups, columns)

    def take(self, columns: Sequence[str] | None, rows: Sequence[int]) -> Iterator[pa.RecordBatch]:
        """See ``Source``."""
        return take_from_groups(self, columns, rows)

    def row_bytes(self, columns: Sequence[str] | None) -> float:
        """See ``Source``."""
        return stored_bytes(self._file.footer, columns) / max(self._file.footer.rows, 1)


@contextmanager
def open_source(shard: Shard) -> Iterator[ParquetSource]:
    """Opens a Parquet shard; see ``open_parquet`` for its checks."""
    with open_parquet(shard.uri) as file:
        yield ParquetSource(file)
