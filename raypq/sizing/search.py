"""What a search takes: rounds of queries over blocks of codes, whose best rows are merged."""

from __future__ import annotations

import math

from raypq.data.codes import bytes_per_code
from raypq.errors import ConfigError
from raypq.sizing.rates import Rates
from raypq.sizing.stage import Stage, embedding, reading, stage, start
from raypq.sizing.workload import Workload

# As raypq/stages does it; a test holds that they are the same.
BLOCK_ROWS = 1 << 19  # codes that are scanned in one go
FAN = 8  # partial answers that one merge takes


def round_size(k: int) -> int:
    """Queries that go through the store together, by the results that each one wants."""
    return max(64, min(8192, (1 << 20) // k))


def search(work: Workload, rates: Rates) -> Stage:
    """Seconds, bytes and memory of ``raypq search``.

    Raises:
        ConfigError: the rates know nothing of searches.
    """
    device = rates.gpu if rates.gpu is not None and work.gpus else rates.cpu
    if rates.search is None or not device.search:
        raise ConfigError(
            "queries: these rates were measured without a search; measure anew "
            "(raypq bench rates --json FILE), then raypq plan --rates FILE"
        )
    known, k = rates.search, min(work.results, work.images)
    rounds = math.ceil(work.queries / round_size(k))
    asked = work.queries / rounds
    shard = min(work.shard_images, work.images)
    together = max(1, BLOCK_ROWS // shard)  # shards of a block
    rows = min(shard * together, work.images)
    blocks = math.ceil(work.images / rows)
    turns = math.ceil(blocks / work.workers)
    scan = asked * device.search_seconds(work.M, k, rows)
    host = rows * _image(work, rates) + together * rates.shard
    tables = asked * 2 * work.D * work.K / rates.cpu.assignment
    partials = blocks * FAN / (FAN - 1) if blocks > FAN else blocks  # those of merges, too
    merging = partials / min(work.workers, blocks) * asked * k * known.partial
    if device is rates.gpu:
        there = blocks * scan / work.gpus
        spent = max(turns * host, there)
    else:
        spent = turns * (host + scan)
    files = math.ceil(work.queries / work.shard_images)
    written = work.queries * k * known.result / min(work.workers, files)
    driver = work.queries * (reading(work, rates) + embedding(work, rates))
    passing = rounds * partials * asked * k * known.partial_bytes
    return stage(
        "search",
        work,
        start(work, rates) + rounds * (spent + tables + merging) + driver + written,
        read=work.queries * work.feature_bytes + rounds * work.images * _stored(work, rates)
        + passing,
        written=passing + work.queries * k * known.result_bytes,
        memory=rates.worker_bytes + _memory(work, rows, asked, k),
        gpus=work.gpus,
    )  # fmt: skip


def _stored(work: Workload, rates: Rates) -> float:
    return bytes_per_code(work.M, work.K) + rates.code_bytes


def _image(work: Workload, rates: Rates) -> float:
    """Seconds to have a stored code in memory."""
    assert rates.search is not None, "checked by the caller"
    fetched = _stored(work, rates) / work.bandwidth if work.bandwidth else 0.0
    return max(rates.search.image, fetched)


def _memory(work: Workload, rows: int, asked: float, k: int) -> float:
    """A block of codes and ids, twice while its shards are joined; tables; answers to merge."""
    block = 2 * rows * (work.M + 32)
    tables = 4 * work.D * (work.K + 2 * asked)
    return block + tables + FAN * asked * k * 40
