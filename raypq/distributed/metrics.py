"""What a gang does, as metrics in Ray's Prometheus endpoint.

The driver reports them, not the workers: it hears of every task, and it is still there to be
scraped when a worker has died or been dismissed. Ray puts ``ray_`` before each name and
``_total`` behind a counter: ``ray_raypq_images_total{stage="encode"}``.
"""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge, Histogram

from raypq.meter import Reading
from raypq.stages.crew import Effort

_SECONDS = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]  # bounds of shard seconds
_TAGS = ("stage",)


class Meters:
    """Keeps the effort of one gang and Ray's metrics of its stage in step."""

    def __init__(self, stage: str) -> None:
        self.effort = Effort()
        tags = {"stage": stage}

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

    def answered(self, seconds: float, read: Reading) -> None:
        """A worker has come back from a task, with its result or an error."""
        effort = self.effort
        effort.seconds += seconds
        effort.images += read.images
        effort.bytes += read.bytes
        self._seconds.observe(seconds)
        if read.images:  # Ray's counters take nothing that is not above zero
            self._images.inc(read.images)
        if read.bytes:
            self._bytes.inc(read.bytes)

    def finished(self) -> None:
        """A task has its result."""
        self.effort.tasks += 1

    def again(self) -> None:
        """A task goes back to the queue for another try."""
        self.effort.retries += 1
        self._retries.inc()

    def given_up(self) -> None:
        """A task has failed for good."""
        self.effort.failed += 1
        self._failed.inc()

    def died(self) -> None:
        """A worker has died."""
        self.effort.deaths += 1
        self._deaths.inc()

    def standing(self, *, workers: int, queue: int) -> None:
        """How many workers are ready, and how many tasks wait."""
        self.effort.workers = max(self.effort.workers, workers)
        self._workers.set(workers)
        self._queue.set(queue)
