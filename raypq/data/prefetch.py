"""Prefetching: a thread fills a short queue while its consumer computes."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import suppress
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import TypeVar

Item = TypeVar("Item")

_POLL_SECONDS = 0.1  # how soon the producer notices that the consumer has stopped


def prefetch(items: Iterator[Item], depth: int = 1) -> Generator[Item, None, None]:
    """Yields items in order, with up to ``depth`` of them produced in advance by a thread.

    An error of the producer is raised in place of its item. If the consumer stops early, the
    producer stops too.
    """
    queue: Queue[tuple[Item | None, BaseException | None]] = Queue(depth)
    stopped = Event()

    def put(entry: tuple[Item | None, BaseException | None]) -> bool:
        while not stopped.is_set():
            try:
                queue.put(entry, timeout=_POLL_SECONDS)
            except Full:
                continue
            return True
        return False

    def produce() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
        except BaseException as error:  # raised by the consumer
            put((None, error))
        else:
            put((None, StopIteration()))

    thread = Thread(target=produce, name="raypq-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = queue.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]  # an entry without an error has an item
    finally:
        stopped.set()
        with suppress(Empty):
            queue.get_nowait()
        thread.join()
