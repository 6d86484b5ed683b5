"""gc in the middle of a night, of an encode and of a restore: what they commit is whole."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from raypq import api
from raypq.config import ReindexJob
from raypq.data.storage import Listed, Storage, use_storage
from raypq.data.store import snapshot
from raypq.errors import ConflictError, InputError
from raypq.stages.stores import garbage, versions

STORES = ("codes", "predictions")


class Sweeping(Storage):
    """Lets gc take all that it may, of every store, before the n-th operation of somebody else."""

    def __init__(self, home: Any, at: int | None) -> None:
        self._home, self._at = home, at
        self.done = 0

    def _count(self) -> None:
        self.done += 1
        if self.done == self._at:
            with use_storage(Storage()):
                sweep(self._home)

    def read_bytes(self, uri: str) -> bytes:
        self._count()
        return super().read_bytes(uri)

    def list_files(self, uri: str) -> dict[str, Listed]:
        self._count()
        return super().list_files(uri)

    def create(self, uri: str, content: bytes) -> None:
        self._count()
        super().create(uri, content)

    def delete(self, uri: str) -> None:
        self._count()
        super().delete(uri)


def sweep(home: Any) -> None:
    for store in STORES:
        if snapshot.versions(home(store)):
            garbage.collect(home(store), keep=1, older_than_days=-1, remove=True)


def night(home: Any) -> dict[str, Any]:
    section = {"classes": home("classes.parquet"), "output": home("predictions")}
    return api.reindex(
        ReindexJob.parse(
            {
                "model": home("old"),
                "features": [home("features")],
                "codes": home("codes"),
                "classify": section,
                "where": home.where,
            }
        )
    )


def whole(home: Any) -> None:
    for store in STORES:
        if snapshot.versions(home(store)):
            versions.verify(home(store), sha256=True)
            sweep(home)
            versions.verify(home(store), sha256=True)


@pytest.mark.parametrize("verb", ["reindex", "encode", "restore"])
def test_gc_in_the_middle(home: Any, verb: str) -> None:
    """At operations that are spread over the whole run; each round begins with a change."""
    number = 6
    night(home)

    def change() -> None:
        nonlocal number
        home.touch(number % 6)
        home.rewrite((number + 1) % 6)
        number += 1

    def restore() -> None:
        with suppress(InputError, ConflictError):  # gc was first
            versions.restore(home("codes"), snapshot.versions(home("codes"))[0])

    runs: dict[str, Callable[[], Any]] = {
        "reindex": lambda: night(home),
        "encode": home.encode,
        "restore": restore,
    }

    def once(at: int | None) -> int:
        change()
        if verb == "restore":
            home.encode()
        counting = Sweeping(home, at)
        with use_storage(counting):
            runs[verb]()
        whole(home)
        return counting.done

    total = once(None)
    for at in range(1, total, max(1, total // 8)):
        once(at)
    night(home)
    assert night(home)["nothing_to_do"]
