"""Cost of a search: rounds of queries over blocks of codes, whose best rows are merged."""

from __future__ import annotations

import math

from raypq.data.codes import bytes_per_code
from raypq.errors import ConfigError
from raypq.sizing.rates import Rates
from raypq.sizing.stage import Stage, embedding, reading, stage, start
from raypq.sizing.workload import Workload

# The constants of raypq/stages/retrieval; a test compares them.
BLOCK_ROWS = 1 << 19  # codes that are scanned at once
FAN = 8  # partial results of one merge


def round_size(k: int) -> int:
    """Queries of a round, by the number of results k per query."""
    return max(64, min(8192, (1 << 20) // k))


def search(work: Workload, rates: Rates) -> Stage:
    """Seconds, bytes and memory of ``raypq search``.

    Raises:
        ConfigError: the rates were measured without a search.
    """
    device = rates.gpu if rates.gpu is not None and work.gpus else rates.cpu
    if rates.search is None or not device.search:
        raise ConfigError(
            "queries: these rates were measured without a search; measure anew "
            "(raypq bench rates --json FILE), then raypq plan --rates FILE"
        )
    costs, k = rates.search, min(work.results, work.images)
    rounds = math.ceil(work.queries / round_size(k))
    queries = work.queries / rounds  # of a round
    shard = min(work.shard_images, work.images)
    block_shards = max(1, BLOCK_ROWS // shard)
    rows = min(shard * block_shards, work.images)
    blocks = math.ceil(work.images / rows)
    turns = math.ceil(blocks / work.workers)
    scan = queries * device.search_seconds(work.M, k, rows)
    host = rows * _image(work, rates) + block_shards * rates.shard
    tables = queries * 2 * work.D * work.K / rates.cpu.assignment
    partials = blocks * FAN / (FAN - 1) if blocks > FAN else blocks  # those of merges included
    merging = partials / min(work.workers, blocks) * queries * k * costs.partial
    if device is rates.gpu:
        scan_seconds = max(turns * host, blocks * scan / work.gpus)
    else:
        scan_seconds = turns * (host + scan)
    files = math.ceil(work.queries / work.shard_images)
    written = work.queries * k * costs.result / min(work.workers, files)
    driver = work.queries * (reading(work, rates) + embedding(work, rates))
    exchanged = rounds * partials * queries * k * costs.partial_bytes
    return stage(
        "search",
        work,
        start(work, rates) + rounds * (scan_seconds + tables + merging) + driver + written,
        read=work.queries * work.feature_bytes + rounds * work.images * _stored(work, rates)
        + exchanged,
        written=exchanged + work.queries * k * costs.result_bytes,
        memory=rates.worker_bytes + _memory(work, rows, queries, k),
        gpus=work.gpus,
    )  # fmt: skip


def _stored(work: Workload, rates: Rates) -> float:
    return bytes_per_code(work.M, work.K) + rates.code_bytes


def _image(work: Workload, rates: Rates) -> float:
    """Seconds to read a stored code."""
    assert rates.search is not None, "checked by the caller"
    fetched = _stored(work, rates) / work.bandwidth if work.bandwidth else 0.0
    return max(rates.search.image, fetched)


def _memory(work: Workload, rows: int, queries: float, k: int) -> float:
    """Bytes of a block (twice, while its shards are joined), of tables and of partial results."""
    block = 2 * rows * (work.M + 32)
    tables = 4 * work.D * (work.K + 2 * queries)
    return block + tables + FAN * queries * k * 40
