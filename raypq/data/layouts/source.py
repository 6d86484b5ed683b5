"""The contract of a layout: how the rows of one shard are read as Arrow batches.

A layout is one file of this package with a ``Source``, and its lines in ``open_shard`` and
``list_features``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import pyarrow as pa

_BLOCK_ROWS = 1 << 16


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

    def row_bytes(self, columns: Sequence[str] | None) -> float:
        """Stored bytes of a row of these columns, on average."""


def blocks(rows: int) -> list[int]:
    """Rows of each group where the layout has no groups of its own."""
    full, rest = divmod(rows, _BLOCK_ROWS)
    return [_BLOCK_ROWS] * full + [rest] * bool(rest)
