"""Metrics of a worker pool in Ray's Prometheus endpoint.

The driver reports them, not the workers: it sees every task, and it can still be scraped after a
worker died or was stopped. Ray puts ``ray_`` before each name and
``_total`` behind a counter: ``ray_raypq_images_total{stage="encode"}``.
"""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge, Histogram

from raypq.execution.executor import PoolStats
from raypq.io_counters import Reading

_SECONDS = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]  # bounds of shard seconds
_TAGS = ("stage",)


class PoolMetrics:
    """Keeps the statistics of one pool and Ray's metrics of its stage in step."""

    def __init__(self, stats: PoolStats) -> None:
        self.stats = stats
        tags = {"stage": stats.stage}

        def counter(name: str, what: str) -> Counter:
            return Counter(f"raypq_{name}", what, _TAGS).set_default_tags(tags)

        def gauge(name: str, what: str) -> Gauge:
            return Gauge(f"raypq_{name}", what, _TAGS).set_default_tags(tags)

        self._images = counter("images", "Images read, from features or codes.")
        self._bytes = counter("bytes_read", "Bytes of Parquet read.")
        self._failed = counter("shards_failed", "Shards given up.")
        self._retries = counter("retries", "Tasks that were tried again.")
        self._deaths = counter("worker_deaths", "Workers that died.")
        self._workers = gauge("workers", "Workers that are ready.")
        self._queue = gauge("queue_depth", "Tasks that no worker is at yet.")
        self._seconds = Histogram(
            "raypq_shard_seconds", "Seconds that a task took its worker.", _SECONDS, _TAGS
        ).set_default_tags(tags)

    def task_returned(self, seconds: float, read: Reading) -> None:
        """A worker returned from a task, with its result or an error."""
        stats = self.stats
        stats.seconds += seconds
        stats.images += read.images
        stats.bytes += read.bytes
        self._seconds.observe(seconds)
        if read.images:  # Ray's counters take nothing that is not above zero
            self._images.inc(read.images)
        if read.bytes:
            self._bytes.inc(read.bytes)

    def task_finished(self) -> None:
        """A task has its result."""
        self.stats.tasks += 1

    def task_retried(self) -> None:
        """A task goes back to the queue for another try."""
        self.stats.retries += 1
        self._retries.inc()

    def task_failed(self) -> None:
        """A task failed for good."""
        self.stats.failed += 1
        self._failed.inc()

    def worker_died(self) -> None:
        """A worker died."""
        self.stats.deaths += 1
        self._deaths.inc()

    def gauge(self, *, workers: int, queue: int) -> None:
        """Sets how many workers are ready, and how many tasks wait."""
        self.stats.workers = max(self.stats.workers, workers)
        self._workers.set(workers)
        self._queue.set(queue)
