"""Search results: ``query_id``, ``id`` list and ``score`` list, best first.

Workers exchange partial results as intermediate files (``data.intermediate``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raypq.config import Metric
from raypq.data import intermediate

# No dictionary encoding: ids and scores are rarely repeated.
WRITE_OPTIONS: dict[str, Any] = {"compression": "zstd", "use_dictionary": False}
_FORMAT = "1"


@dataclass(frozen=True, kw_only=True, eq=False)
class SearchResults:
    """The best rows of some queries, best first; ties in order of the ids.

    Attributes:
        score: [T, k] float32, more is better.
        ids: T·k values, string or int64, query by query.
        row_ref: the position of each row in the store [T, k] int64 (see
            ``stages.retrieval.rerank``), or None.
    """

    score: NDArray[np.float32]
    ids: pa.Array
    row_ref: NDArray[np.int64] | None = None

    @classmethod
    def empty(cls, T: int, id_type: pa.DataType) -> Self:
        """Results of T queries without a row."""
        return cls(
            score=np.empty((T, 0), np.float32),
            ids=pa.array([], id_type),
            row_ref=np.empty((T, 0), np.int64),
        )

    @property
    def k(self) -> int:
        """Rows of each query."""
        return self.score.shape[1]

    def queries(self, start: int, stop: int) -> SearchResults:
        """The results of a range of queries."""
        return SearchResults(
            score=self.score[start:stop],
            ids=self.ids.slice(start * self.k, (stop - start) * self.k),
            row_ref=None if self.row_ref is None else self.row_ref[start:stop],
        )


def merge(parts: Sequence[SearchResults], k: int) -> SearchResults:
    """The k best rows of several results of the same queries; exact, in any grouping."""
    parts = [part for part in parts if part.k] or list(parts[:1])
    score = np.concatenate([part.score for part in parts], axis=1)
    T, width = score.shape
    ids = pa.concat_arrays([part.ids for part in parts])
    id_index = np.empty((T, width), np.int64)  # of each row's id in ``ids``
    column = start = 0
    for part in parts:
        part_index = np.arange(T * part.k, dtype=np.int64).reshape(T, part.k)
        id_index[:, column : column + part.k] = start + part_index
        column, start = column + part.k, start + T * part.k
    order = _best(score, id_index, ids, k)
    row_ref = None
    if all(part.row_ref is not None for part in parts):
        row_ref = np.concatenate([part.row_ref for part in parts if part.row_ref is not None], 1)
        row_ref = np.take_along_axis(row_ref, order, 1)
    return SearchResults(
        score=np.take_along_axis(score, order, 1),
        ids=ids.take(pa.array(np.take_along_axis(id_index, order, 1).reshape(-1))),
        row_ref=row_ref,
    )


def _best(
    score: NDArray[np.float32], id_index: NDArray[np.int64], ids: pa.Array, k: int
) -> NDArray[np.int64]:
    """Columns [T, k] of the k best scores. Ids are compared only where scores are equal."""
    order = np.argsort(-score, axis=1, kind="stable")
    ordered = np.take_along_axis(score, order[:, : k + 1], 1)
    tied = np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=1))
    order = order[:, :k]
    if len(tied):
        tied_ids = ids.take(pa.array(id_index[tied].reshape(-1)))
        rank = pc.rank(tied_ids, tiebreaker="dense").to_numpy().astype(np.int64)
        order[tied] = np.lexsort((rank.reshape(len(tied), -1), -score[tied]), axis=1)[:, :k]
    return order


def write_partial(store: str, results: SearchResults) -> str:
    """Writes partial results to an intermediate file; returns its path in the store."""
    T, k = results.score.shape
    columns = {"id": results.ids, "score": pa.array(results.score.reshape(-1))}
    if results.row_ref is not None:
        columns["row_ref"] = pa.array(results.row_ref.reshape(-1))
    table = pa.table(columns).replace_schema_metadata({"T": str(T), "k": str(k)})
    return intermediate.write(store, table)


def read_partial(store: str, path: str) -> SearchResults:
    """Reads partial results."""
    table = intermediate.read(store, path).combine_chunks()
    T, k = (int(table.schema.metadata[name]) for name in (b"T", b"k"))

    def column(name: str) -> pa.Array:
        chunks = table.column(name)
        return chunks.chunk(0) if chunks.num_chunks else pa.array([], chunks.type)

    return SearchResults(
        score=column("score").to_numpy().reshape(T, k),
        ids=column("id"),
        row_ref=column("row_ref").to_numpy().reshape(T, k)
        if "row_ref" in table.column_names
        else None,
    )


def schema(*, query_type: pa.DataType, id_type: pa.DataType, metadata: dict[str, str]) -> pa.Schema:
    """The schema of a result file."""
    return pa.schema(
        [
            pa.field("query_id", query_type, nullable=False),
            pa.field("id", pa.list_(id_type), nullable=False),
            pa.field("score", pa.list_(pa.float32()), nullable=False),
        ],
        metadata={"raypq.format": _FORMAT, **metadata},
    )


def in_metric(score: NDArray[np.float32], metric: Metric) -> NDArray[np.float32]:
    """Scores [T, k], where more is better, as values of the metric (for l2: squared distances)."""
    return np.maximum(0 - score, np.float32(0)) if metric == "l2" else score


def record_batch(
    schema: pa.Schema,
    *,
    query_ids: pa.Array,
    valid: NDArray[np.bool_],
    score: NDArray[np.float32],
    ids: pa.Array,
) -> pa.RecordBatch:
    """One batch of a result file.

    Args:
        valid: mask [n] of the queries that have results; the others get empty lists.
        score: [valid.sum(), k], values of the metric.
        ids: valid.sum()·k values.
    """
    offsets = np.zeros(len(valid) + 1, np.int32)
    np.cumsum(valid * score.shape[1], out=offsets[1:])
    list_offsets = pa.array(offsets)
    columns = [
        query_ids.cast(schema.field("query_id").type),
        pa.ListArray.from_arrays(list_offsets, ids.cast(schema.field("id").type.value_type)),
        pa.ListArray.from_arrays(list_offsets, pa.array(score.reshape(-1), pa.float32())),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
