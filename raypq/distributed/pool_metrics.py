"""Metrics of a worker pool in Ray's Prometheus endpoint.

The driver reports them, not the workers: it sees every task, and it can still be scraped after a
worker died or was stopped. Ray prepends ``ray_`` to each name and appends ``_total`` to counters:
``ray_raypq_images_total{stage="encode"}``.

The series of a driver end with the agent of its node, not with the driver (Ray 2.60). Every counter
starts at 0 with its pool, so that ``increase`` sees its first step, too.
"""

from __future__ import annotations

import sys

from ray.util.metrics import Counter, Gauge, Histogram

from raypq.execution.executor import PoolStats
from raypq.io_counters import Reading

# Seconds of a shard. Ray's ``_sum`` adds the middle of the bucket of each value, which is far off
# where buckets are coarse; ``worker_seconds`` is exact.
_BUCKETS = [0.01 * 2**power for power in range(18)]
_ZERO = sys.float_info.min  # Ray's counters refuse 0
_TAGS = ("stage",)


class PoolMetrics:
    """Updates the statistics of one pool and the Prometheus metrics of its stage together."""

    def __init__(self, stats: PoolStats) -> None:
        self.stats = stats
        tags = {"stage": stats.stage}

        def counter(name: str, description: str) -> Counter:
            made = Counter(f"raypq_{name}", description, _TAGS).set_default_tags(tags)
            made.inc(_ZERO)
            return made

        def gauge(name: str, description: str) -> Gauge:
            return Gauge(f"raypq_{name}", description, _TAGS).set_default_tags(tags)

        self._images = counter("images", "Images read, from features or codes.")
        self._bytes = counter("bytes_read", "Bytes of Parquet read.")
        self._busy = counter("worker_seconds", "Seconds that workers spent in tasks.")
        self._failed = counter("shards_failed", "Shards that failed.")
        self._retries = counter("retries", "Tasks that were retried.")
        self._deaths = counter("worker_deaths", "Workers that died.")
        self._workers = gauge("workers", "Workers that are ready.")
        self._queue = gauge("queue_depth", "Tasks that wait for a worker.")
        self._seconds = Histogram(
            "raypq_shard_seconds", "Seconds that a task took its worker.", _BUCKETS, _TAGS
        ).set_default_tags(tags)

    def task_returned(self, seconds: float, read: Reading) -> None:
        """Counts the cost of a call, whether it gave a result or an error."""
        stats = self.stats
        stats.seconds += seconds
        stats.images += read.images
        stats.bytes += read.bytes
        self._seconds.observe(seconds)
        self._busy.inc(max(seconds, _ZERO))
        if read.images:  # Ray's counters refuse increments of zero
            self._images.inc(read.images)
        if read.bytes:
            self._bytes.inc(read.bytes)

    def task_finished(self) -> None:
        """Counts a task that has its result."""
        self.stats.tasks += 1

    def task_retried(self) -> None:
        """Counts a task that is retried."""
        self.stats.retries += 1
        self._retries.inc()

    def task_failed(self) -> None:
        """Counts a task that failed for good."""
        self.stats.failed += 1
        self._failed.inc()

    def worker_died(self) -> None:
        """Counts a dead worker."""
        self.stats.deaths += 1
        self._deaths.inc()

    def gauge(self, *, workers: int, queue: int) -> None:
        """Sets the numbers of workers that are ready and of tasks that wait."""
        self.stats.workers = max(self.stats.workers, workers)
        self._workers.set(workers)
        self._queue.set(queue)
