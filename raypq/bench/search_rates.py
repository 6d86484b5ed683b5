"""The rates of a search: lookups, reading, merging and writing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq import kernels
from raypq.data import search_results
from raypq.data.search_results import SearchResults
from raypq.data.storage import Shard, delete, file_size, join
from raypq.data.store import shard_writer
from raypq.data.store.snapshot import Snapshot
from raypq.sizing import SearchRates
from raypq.sizing.search import BLOCK_ROWS, FAN
from raypq.stages.retrieval.code_blocks import blocks_of
from raypq.stages.stores.code_store import id_type_of, models_for
from raypq.stages.stores.shard_task import stored_shards

_SUB_CODEBOOKS, _K, _WIDTH = (8, 16, 50), 256, 8
_RESULTS, _ROWS = (10, 100), (BLOCK_ROWS // 8, BLOCK_ROWS)
_QUERIES, _ASKED = 128, 512

Measure = Callable[[Callable[[], object]], float]


def lookups(
    device: str, measure: Measure, rng: np.random.Generator
) -> dict[int, dict[int, dict[int, float]]]:
    """Seconds a query, by M, results and rows.

    Codes are drawn evenly: what a search adds to its best rows depends on the order of the scores,
    and they stand in any order here as in a store.
    """
    rates: dict[int, dict[int, dict[int, float]]] = {}
    for M in _SUB_CODEBOOKS:
        C = rng.standard_normal((M, _K, _WIDTH), dtype=np.float32)
        V = rng.standard_normal((_QUERIES, M * _WIDTH), dtype=np.float32)
        B = rng.integers(0, _K, (BLOCK_ROWS, M), dtype=np.uint8)
        tables = kernels.build_tables(C, V, None, "l2")

        def seconds(rows: int, k: int, B: NDArray[np.uint8] = B, tables: kernels.Tables = tables
        ) -> float:  # fmt: skip
            turn = partial(kernels.topk_per_query, B[:rows], tables, k, device=device)
            return measure(turn) / _QUERIES

        rates[M] = {k: {rows: seconds(rows, k) for rows in _ROWS} for k in _RESULTS}
    return rates


def beside(
    root: Path, codes: str, version: Snapshot, measure: Measure, rng: np.random.Generator
) -> SearchRates:
    """Reading a code store, and answers on their way through the output store at ``root``."""
    shards = stored_shards(codes, version)
    id_type = id_type_of(codes, version)
    models = models_for(codes, version, None)
    blocks = list(blocks_of(shards, models, id_type))
    read = measure(lambda: list(blocks_of(shards, models, id_type)))
    ids = pa.concat_arrays([block.ids for block in blocks])
    store, k = str(root), _RESULTS[-1]
    (root / "data").mkdir(parents=True)

    def answered() -> SearchResults:
        score = -np.sort(-rng.standard_normal((_ASKED, k), dtype=np.float32), axis=1)
        some = pa.array(rng.integers(0, len(ids), _ASKED * k))
        return SearchResults(score=score, ids=ids.take(some))

    parts = [answered() for _ in range(FAN)]
    sizes: list[int] = []

    def merged() -> None:
        paths = [search_results.write_partial(store, part) for part in parts]
        sizes.append(file_size(join(store, paths[0])))
        search_results.merge([search_results.read_partial(store, path) for path in paths], k)
        for path in paths:
            delete(join(store, path))

    def written() -> shard_writer.Receipt:
        return _write(store, parts[0])

    several = _ASKED * k
    return SearchRates(
        image=read / version.rows,
        partial=measure(merged) / (FAN * several),
        result=measure(written) / several,
        partial_bytes=sizes[-1] / several,
        result_bytes=written().bytes / several,
    )


def _write(store: str, answer: SearchResults) -> shard_writer.Receipt:
    T = len(answer.score)
    schema = search_results.schema(query_type=pa.int64(), id_type=answer.ids.type, metadata={})
    batch = search_results.record_batch(
        schema,
        query_ids=pa.array(np.arange(T)),
        valid=np.ones(T, bool),
        score=answer.score,
        ids=answer.ids,
    )
    return shard_writer.write_shard(
        store,
        Shard(index=0, uri="queries", stem="queries", size=0, modified=""),
        model="",
        work="",
        schema=schema,
        batches=[batch],
        options=search_results.WRITE_OPTIONS,
    )
