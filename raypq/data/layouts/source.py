"""The contract of a layout: how the rows of one shard are read as Arrow batches.

A layout is one file of this package with a ``Source``, and its lines in ``open_shard`` and
``list_features``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import pyarrow as pa

_BLOCK_ROWS = 1 << 16
_TAKE_ROWS = 64  # rows of images that are held at once


class Source(Protocol):
    """The rows of an open shard.

    Attributes:
        uri: of the shard, for errors.
    """

    uri: str

    @property
    def schema(self) -> pa.Schema:
        """Columns and types."""

    @property
    def group_rows(self) -> Sequence[int]:
        """Rows of each group; a group can be read without those before it."""

    def batches(
        self, columns: Sequence[str] | None, size: int, group: int | None
    ) -> Iterator[pa.RecordBatch]:
        """Batches of up to ``size`` rows, in order; of one group, or of all.

        Args:
            columns: names of columns, or paths ``a.b`` into structs; a path gives column ``a``
                with at least its field ``b``. None for all columns, in the schema's order.
        """

    def take(self, columns: Sequence[str] | None, rows: Sequence[int]) -> Iterator[pa.RecordBatch]:
        """Some rows, in ascending order, as a batch each; columns as in ``batches``."""

    def row_bytes(self, columns: Sequence[str] | None) -> float:
        """Stored bytes of a row of these columns, on average."""


def take_from_groups(
    source: Source, columns: Sequence[str] | None, rows: Sequence[int]
) -> Iterator[pa.RecordBatch]:
    """``Source.take`` of a layout without access to single rows: reads the groups that hold a row,
    each up to the last one that is wanted."""
    start = 0
    for group, count in enumerate(source.group_rows):
        wanted = [row - start for row in rows if start <= row < start + count]
        start += count
        first = 0
        for batch in source.batches(columns, _TAKE_ROWS, group) if wanted else ():
            end = first + len(batch)
            yield from (batch.slice(row - first, 1) for row in wanted if first <= row < end)
            if end > wanted[-1]:
                break
            first = end


def blocks(rows: int) -> list[int]:
    """Rows of each group where the layout has no groups of its own."""
    full, rest = divmod(rows, _BLOCK_ROWS)
    return [_BLOCK_ROWS] * full + [rest] * bool(rest)
