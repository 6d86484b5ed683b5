"""Threads beside a consumer: items produced ahead of it, and computed several at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import TypeVar

from raypq import kernels

Item = TypeVar("Item")
Result = TypeVar("Result")

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


def in_flight(
    call: Callable[[Item], Result], items: Iterator[Item], depth: int, *, waiting: int = 0
) -> Generator[Result, None, None]:
    """Yields ``call(item)`` in the order of the items, of which ``depth`` are computed at a time.

    The items are produced by a thread of their own. An error is raised in place of its result.

    Args:
        waiting: further items that wait for a free thread, so that none is idle while the consumer
            has a result.
    """
    running: deque[Future[Result]] = deque()
    ahead = prefetch(items)
    with ThreadPoolExecutor(depth, "raypq-batch", kernels.apply_thread_limit) as threads:
        try:
            for item in ahead:
                running.append(threads.submit(call, item))
                if len(running) == depth + waiting:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            ahead.close()
            for future in running:
                future.cancel()
