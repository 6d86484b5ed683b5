"""One stage of a plan, and terms that several stages share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from raypq.data.features import batch_rows
from raypq.sizing.rates import Rates
from raypq.sizing.workload import Workload

_HOUR = 3600.0


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Time, bytes, memory and cost of one stage.

    Attributes:
        seconds: wall time. read, written: bytes. memory: bytes of a worker. cost: in the currency
            of the prices.
    """

    name: str
    seconds: float
    read: float
    written: float
    memory: float
    cost: float


def embedding(work: Workload, rates: Rates) -> float:
    """CPU seconds to normalise and project an image."""
    projected = 0.0 if work.method == "pq" else 2 * work.dims * work.D / rates.cpu.projection
    scaled = 4 * work.dims / rates.normalise if work.method == "pqzsl" else 0.0
    return scaled + projected


def reading(work: Workload, rates: Rates) -> float:
    """Seconds to read the features of an image."""
    rate = rates.read[work.layout]
    if work.bandwidth is not None:
        rate = min(rate, work.bandwidth)
    return work.feature_bytes / rate


def opening(work: Workload, rates: Rates, images: int) -> float:
    """Seconds to open the shards of ``images``, and to write their outputs."""
    shards = math.ceil(images / work.shard_images)
    return rates.shard * math.ceil(shards / work.workers)


def start(work: Workload, rates: Rates) -> float:
    """Seconds until the workers have started."""
    return rates.start or 0.0 if work.cluster == "ray" else 0.0


def batches(work: Workload) -> float:
    """Bytes of feature batches in flight: one computed, one prefetched, and copies of each."""
    return 6.0 * 4 * work.dims * min(batch_rows(work.dims), work.shard_images)


def stage(
    name: str, work: Workload, seconds: float, *, read: float, written: float, memory: float,
    gpus: int,
) -> Stage:  # fmt: skip
    """A stage with its cost."""
    price = work.workers * work.worker_hour + gpus * work.gpu_hour
    return Stage(name=name, seconds=seconds, read=read, written=written, memory=memory,
                 cost=seconds / _HOUR * price)  # fmt: skip


def total(stages: Sequence[Stage]) -> Stage:
    """All stages: times, bytes and costs added, the largest memory."""
    return Stage(
        name="in all",
        seconds=sum(stage.seconds for stage in stages),
        read=sum(stage.read for stage in stages),
        written=sum(stage.written for stage in stages),
        memory=max(stage.memory for stage in stages),
        cost=sum(stage.cost for stage in stages),
    )
