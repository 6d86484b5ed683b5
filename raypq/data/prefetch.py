"""Prefetching: a thread fills a short queue while its consumer computes."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import suppress
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import TypeVar

Item = TypeVar("Item")

_WAIT = 0.1  # seconds between looks at whether the consumer has gone


def ahead(items: Iterator[Item], depth: int = 1) -> Generator[Item, None, None]:
    """Passes items on in order, up to ``depth`` of them produced before they are asked for.

    An error of the producer is raised where its item would have come. If the consumer stops
    early the producer stops too.
    """
    queue: Queue[tuple[Item | None, BaseException | None]] = Queue(depth)
    gone = Event()

    def put(entry: tuple[Item | None, BaseException | None]) -> bool:
        while not gone.is_set():
            try:
                queue.put(entry, timeout=_WAIT)
            except Full:
                continue
            return True
        return False

    def produce() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
        except BaseException as error:  # handed over, not swallowed
            put((None, error))
        else:
            put((None, StopIteration()))

    thread = Thread(target=produce, name="raypq-ahead", daemon=True)
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
        gone.set()
        with suppress(Empty):
            queue.get_nowait()
        thread.join()
