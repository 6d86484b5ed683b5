"""Search results: ``query_id``, ``id`` list and ``score`` list, best first.

Between the workers they travel as partial answers (``data.partial``).
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

# No dictionaries: neither ids nor scores come often enough to be worth one.
WRITE_OPTIONS: dict[str, Any] = {"compression": "zstd", "use_dictionary": False}
_FORMAT = "1"


@dataclass(frozen=True, kw_only=True, eq=False)
class SearchResults:
    """The best rows of some queries, best first; ties by id, which compare as their type does.

    Attributes:
        score: [T, k] float32, more is better.
        ids: T·k values, string or int64, query by query.
        place: where each row stands in the store [T, k] int64 (see ``stages.rerank``), or None.
    """

    score: NDArray[np.float32]
    ids: pa.Array
    place: NDArray[np.int64] | None = None

    @classmethod
    def empty(cls, T: int, id_type: pa.DataType) -> Self:
        """T queries without a row."""
        return cls(
            score=np.empty((T, 0), np.float32),
            ids=pa.array([], id_type),
            place=np.empty((T, 0), np.int64),
        )

    @property
    def k(self) -> int:
        """Rows that each query has."""
        return self.score.shape[1]

    def queries(self, start: int, stop: int) -> SearchResults:
        """The answers of some queries."""
        return SearchResults(
            score=self.score[start:stop],
            ids=self.ids.slice(start * self.k, (stop - start) * self.k),
            place=None if self.place is None else self.place[start:stop],
        )


def merge(parts: Sequence[SearchResults], k: int) -> SearchResults:
    """The k best of several answers to the same queries; exact, and in whatever grouping."""
    parts = [part for part in parts if part.k] or list(parts[:1])
    score = np.concatenate([part.score for part in parts], axis=1)
    T, width = score.shape
    ids = pa.concat_arrays([part.ids for part in parts])
    flat = np.empty((T, width), np.int64)  # where in ``ids`` each one's id stands
    column = start = 0
    for part in parts:
        here = np.arange(T * part.k, dtype=np.int64).reshape(T, part.k)
        flat[:, column : column + part.k] = start + here
        column, start = column + part.k, start + T * part.k
    order = _best(score, flat, ids, k)
    place = None
    if all(part.place is not None for part in parts):
        places = np.concatenate([part.place for part in parts if part.place is not None], axis=1)
        place = np.take_along_axis(places, order, 1)
    return SearchResults(
        score=np.take_along_axis(score, order, 1),
        ids=ids.take(pa.array(np.take_along_axis(flat, order, 1).reshape(-1))),
        place=place,
    )


def _best(
    score: NDArray[np.float32], flat: NDArray[np.int64], ids: pa.Array, k: int
) -> NDArray[np.int64]:
    """Columns of the k best of each row. Ids are compared only where scores are equal."""
    order = np.argsort(-score, axis=1, kind="stable")
    ordered = np.take_along_axis(score, order[:, : k + 1], 1)
    tied = np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=1))
    order = order[:, :k]
    if len(tied):
        names = ids.take(pa.array(flat[tied].reshape(-1)))
        rank = pc.rank(names, tiebreaker="dense").to_numpy().astype(np.int64)
        order[tied] = np.lexsort((rank.reshape(len(tied), -1), -score[tied]), axis=1)[:, :k]
    return order


def write_partial(store: str, answer: SearchResults) -> str:
    """Puts a partial answer into a file of its own; returns its path in the store."""
    T, k = answer.score.shape
    columns = {"id": answer.ids, "score": pa.array(answer.score.reshape(-1))}
    if answer.place is not None:
        columns["place"] = pa.array(answer.place.reshape(-1))
    table = pa.table(columns).replace_schema_metadata({"T": str(T), "k": str(k)})
    return intermediate.write(store, table)


def read_partial(store: str, path: str) -> SearchResults:
    """A partial answer."""
    table = intermediate.read(store, path).combine_chunks()
    T, k = (int(table.schema.metadata[name]) for name in (b"T", b"k"))

    def column(name: str) -> pa.Array:
        chunks = table.column(name)
        return chunks.chunk(0) if chunks.num_chunks else pa.array([], chunks.type)

    return SearchResults(
        score=column("score").to_numpy().reshape(T, k),
        ids=column("id"),
        place=column("place").to_numpy().reshape(T, k) if "place" in table.column_names else None,
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


def own_terms(score: NDArray[np.float32], metric: Metric) -> NDArray[np.float32]:
    """Scores as the metric has them: for l2 the squared distance, which is never below 0."""
    return np.maximum(0 - score, np.float32(0)) if metric == "l2" else score


def record_batch(
    schema: pa.Schema,
    *,
    query_ids: pa.Array,
    asked: NDArray[np.bool_],
    score: NDArray[np.float32],
    ids: pa.Array,
) -> pa.RecordBatch:
    """One batch of a result file.

    Args:
        asked: which of the queries ``score`` and ``ids`` answer [n]; the others get empty lists.
        score: [asked.sum(), k], in the metric's own terms.
    """
    offsets = np.zeros(len(asked) + 1, np.int32)
    np.cumsum(asked * score.shape[1], out=offsets[1:])
    places = pa.array(offsets)
    columns = [
        query_ids.cast(schema.field("query_id").type),
        pa.ListArray.from_arrays(places, ids.cast(schema.field("id").type.value_type)),
        pa.ListArray.from_arrays(places, pa.array(score.reshape(-1), pa.float32())),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
