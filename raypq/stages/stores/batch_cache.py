"""Batches of shards that a worker keeps in memory from pass to pass."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from threading import Lock
from typing import Generic, TypeVar

B = TypeVar("B")


class BatchCache(Generic[B]):
    """The batches of whole shards, as far as they fit; threads may share it.

    Args:
        free_bytes: of all batches. size: bytes of one.
    """

    def __init__(self, free_bytes: int, size: Callable[[B], int]) -> None:
        self._free_bytes, self._size = free_bytes, size
        self._cache: dict[Hashable, list[B]] = {}
        self._lock = Lock()

    def batches(self, shard: Hashable, read: Callable[[], Iterator[B]]) -> Iterator[B]:
        """The batches of a shard, from memory, or read and then kept if they fit."""
        if shard in self._cache:
            yield from self._cache[shard]
            return
        kept: list[B] = []
        fits = True
        complete = False
        try:
            for batch in read():
                fits = fits and self._reserve(self._size(batch))
                if fits:
                    kept.append(batch)
                yield batch
            complete = True
        finally:
            if fits and complete:
                self._cache[shard] = kept
            else:
                self._reserve(-sum(map(self._size, kept)))

    def get(self, shard: Hashable) -> list[B] | None:
        """The batches of a shard that is in memory."""
        return self._cache.get(shard)

    def add(self, shard: Hashable, batches: list[B]) -> None:
        """Keeps the batches of a shard, if they fit."""
        if shard not in self._cache and self._reserve(sum(map(self._size, batches))):
            self._cache[shard] = batches

    def replace(self, shard: Hashable, by: Hashable, batches: list[B]) -> None:
        """Keeps batches in the place of those of a shard; where they do not fit, these stay."""
        kept = self._cache.get(shard)
        if kept is None:
            return
        if self._reserve(sum(map(self._size, batches)) - sum(map(self._size, kept))):
            del self._cache[shard]
            self._cache[by] = batches

    def drop(self, shard: Hashable) -> None:
        """Gives the memory of a shard back."""
        self._reserve(-sum(map(self._size, self._cache.pop(shard, []))))

    def _reserve(self, size: int) -> bool:
        with self._lock:
            if size > self._free_bytes:
                return False
            self._free_bytes -= size
            return True
