"""Search results in pictures: some queries, each with its best results."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from raypq.data.image_lookup import Wanted
from raypq.data.storage import join, stream
from raypq.data.stored import open_stored
from raypq.reporting.findings import Store
from raypq.reporting.pictures import Gallery, Picture, Row
from raypq.reporting.samples import Context, evenly
from raypq.reporting.tables import count

_QUERIES, _RESULTS = 8, 8  # that are shown
_ROWS = 1024  # of each file, from which queries are chosen


class Query(NamedTuple):
    """A query and its best results; ``origin`` is None for a query by id, which is stored."""

    id: str
    origin: str | None
    results: pa.Array
    scores: list[float]


def gallery(store: Store, context: Context) -> Gallery:
    """Some queries and their best results.

    Raises:
        InputError: a file of the store cannot be read.
    """
    queries = list(_queries(store, context))
    ids = [query.results for query in queries]
    ids += [pa.array([query.id], pa.string()) for query in queries if query.origin is None]
    origins = _origins(store, context, ids)
    distance = "distance " if store.latest.summary.get("metric") == "l2" else ""
    return Gallery(
        title=context.short[store.place],
        note=f"{len(queries)} of {count(store.latest.rows)} queries, each with its best results. A "
        "result is right if its label is the query's, where the images have labels.",
        rows=[_row(query, origins, distance) for query in queries],
    )


def _queries(store: Store, context: Context) -> Iterator[Query]:
    """Evenly spaced queries of evenly spaced files, without those that have no result."""
    receipts = evenly([item for item in store.latest.shards if item.rows], _QUERIES)
    for number, receipt in enumerate(receipts):
        share = (number + 1) * _QUERIES // len(receipts) - number * _QUERIES // len(receipts)
        origin = context.origins.of(receipt.source.uri) if receipt.source.modified else None
        with open_stored(join(store.place, receipt.path), "search", size=receipt.bytes) as file:
            columns = ["query_id", "id", "score"]
            batch: Any = next(iter(stream(file, _ROWS, columns)))
        lengths = pc.list_value_length(batch.column("id")).fill_null(0)
        found = pc.indices_nonzero(lengths).to_pylist()
        for row in evenly(found, share):
            results = batch.column("id")[row].values.slice(0, _RESULTS)
            scores = batch.column("score")[row].as_py()[:_RESULTS]
            yield Query(str(batch.column("query_id")[row].as_py()), origin, results, scores)


def _origins(store: Store, context: Context, ids: list[pa.Array]) -> dict[str, str]:
    """The source shards of ids in the searched store."""
    if not ids:
        return {}
    kind = ids[0].type
    return context.origins_of(store, pa.concat_arrays([part.cast(kind) for part in ids]).unique())


def _row(query: Query, origins: dict[str, str], distance: str) -> Row:
    want = Wanted(query.id, query.origin or origins.get(query.id))
    results = zip(query.results.cast(pa.string()).to_pylist(), query.scores, strict=True)
    pictures = [
        Picture(
            want=Wanted(name, origins.get(name)),
            note=f"{distance}{score:.3g}" + (", the query itself" if name == query.id else ""),
        )
        for name, score in results
    ]
    return Row(
        title=f"Query {query.id}",
        pictures=[Picture(want=want, mark="query"), *pictures],
        has_query=True,
    )
