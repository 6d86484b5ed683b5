"""The start of a local Ray, without processes that no job uses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Ray 2.60 starts the dashboard, without its pages, whatever ``include_dashboard`` says, and waits
# for it: with the autoscaler and the forwarder of logs, that is half of the time of a start.
_UNUSED = ("start_api_server", "start_monitor", "start_log_monitor")


@contextmanager
def without_unused_processes() -> Iterator[None]:
    """Context in which ``ray.init`` starts no dashboard, autoscaler or forwarder of logs. In a Ray
    that starts them in another way, it starts them."""
    try:
        from ray._private.node import Node
    except ImportError:
        yield
        return
    methods = {name: vars(Node)[name] for name in _UNUSED if name in vars(Node)}
    for name in methods:
        setattr(Node, name, _nothing)
    try:
        yield
    finally:
        for name, method in methods.items():
            setattr(Node, name, method)


def _nothing(*args: Any, **more: Any) -> None:
    """In place of a method that starts a process."""
