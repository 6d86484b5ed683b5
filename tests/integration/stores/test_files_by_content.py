"""A file that is named by a path counts by its content: edited, it is used as it is now."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypq import api
from raypq.config import ReindexJob, SearchJob
from raypq.data.storage import Storage, use_storage
from raypq.data.store import snapshot

Run = Callable[[], Any]


def classes(home: Any) -> list[str]:
    return pq.read_table(home("classes.parquet"))["class_id"].to_pylist()


def write_ids(path: str, ids: list[str]) -> None:
    if path.endswith(".parquet"):
        pq.write_table(pa.table({"class_id": ids}), path)
    else:
        Path(path).write_text("\n".join(ids) + "\n")


def classify(home: Any, spec: str) -> Run:
    return lambda: home.classify(candidates=spec, top_k=2)


def reindex(home: Any, spec: str) -> Run:
    section = {
        "classes": home("classes.parquet"),
        "output": home("predictions"),
        "candidates": spec,
        "top_k": 2,
    }

    def run() -> snapshot.Snapshot:
        api.reindex(
            ReindexJob(
                model=home("old"),
                features=[home("features")],
                codes=home("codes"),
                classify=[section],
                where=home.where,
            )
        )
        return snapshot.read(home("predictions"))

    return run


def chosen(home: Any) -> set[str]:
    found = set()
    for receipt in snapshot.read(home("predictions")).shards:
        table = pq.read_table(Path(home("predictions"), receipt.path))
        found |= {name for row in table["class_id"].to_pylist() for name in row}
    return found


@pytest.mark.parametrize("verb", [classify, reindex])
@pytest.mark.parametrize("name", ["wanted.txt", "wanted.parquet", "a+b.txt"])
@pytest.mark.parametrize("joined", [False, True])
def test_candidates(home: Any, verb: Any, name: str, joined: bool) -> None:
    home.encode()
    ids = classes(home)
    path = home(name)
    other = home("other.txt")
    write_ids(other, ids[10:12])
    spec = f"{path}+{other}" if joined and "+" not in name else path
    more = set(ids[10:12]) if spec != path else set()
    write_ids(path, ids[:3])
    run = verb(home, spec)
    first = run()
    assert chosen(home) <= {*ids[:3], *more}
    assert run() == first
    write_ids(path, ids[3:6])
    second = run()
    assert second.version == first.version + 1
    assert chosen(home) <= {*ids[3:6], *more}
    assert run() == second
    write_ids(path, ids[5:2:-1])  # the same classes in another order
    assert run() == second


def test_a_class_table(home: Any) -> None:
    home.encode()
    first = home.classify()
    table = pq.read_table(home("classes.parquet"))
    pq.write_table(table.take(list(range(19, -1, -1))), home("classes.parquet"))
    assert home.classify().version == first.version + 1


def search(home: Any, **more: Any) -> snapshot.Snapshot:
    values = {
        "codes": home("codes"),
        "queries": [home("queries.parquet")],
        "top_k": 5,
        "output": home("found"),
        "where": home.where,
    } | more
    return api.search(SearchJob(**values))


@pytest.fixture
def asked(home: Any) -> Any:
    """A home with codes, and with queries like some of its features."""
    home.encode()
    pq.write_table(pq.read_table(home.shard(0)).slice(0, 4), home("queries.parquet"))
    return home


def test_ids_to_search(asked: Any) -> None:
    ids = pq.read_table(asked.shard(0))["id"].to_pylist()
    write_ids(asked("ids.txt"), ids[:10])
    run = lambda: search(asked, ids=asked("ids.txt"))  # noqa: E731
    first = run()
    assert run() == first
    write_ids(asked("ids.txt"), ids[10:20])
    assert run().version == 2
    Path(asked("ids.txt")).rename(asked("moved.txt"))
    assert search(asked, ids=asked("moved.txt")).version == 2, "the path says nothing"


def test_stored_queries(asked: Any) -> None:
    ids = pq.read_table(asked.shard(0))["id"].to_pylist()
    write_ids(asked("ids.txt"), ids[:3])
    run = lambda: search(  # noqa: E731
        asked, queries=None, query_ids=asked("ids.txt"), distance="sdc"
    )
    assert run() == run()
    write_ids(asked("ids.txt"), ids[3:6])
    assert run().version == 2
    table = pq.read_table(Path(asked("found"), snapshot.read(asked("found")).shards[0].path))
    assert table["query_id"].to_pylist() == ids[3:6]


def test_original_vectors(asked: Any) -> None:
    run = lambda: search(asked, rerank=20, features=[asked("features")])  # noqa: E731
    first = run()
    assert run() == first
    asked.touch(2)
    assert run().version == 2, "another file for all that is known"


class Edited(Storage):
    """A file that changes just after it was read for the first time."""

    def __init__(self, path: str, change: Callable[[], None]) -> None:
        self._path, self._change, self._done = path, change, False

    def _read(self, uri: str) -> None:
        if uri == self._path and not self._done:
            self._done = True
            self._change()

    def read_bytes(self, uri: str) -> bytes:
        found = super().read_bytes(uri)
        self._read(uri)
        return found

    def digest(self, uri: str) -> str:
        found = super().digest(uri)
        self._read(uri)
        return found


def test_a_file_that_changes_while_it_is_read(asked: Any) -> None:
    """What is recorded is what was used, so the next run sees that the file is another one."""
    ids, all_ids = classes(asked), pq.read_table(asked.shard(0))["id"].to_pylist()
    write_ids(asked("wanted.txt"), ids[:3])
    with use_storage(Edited(asked("wanted.txt"), lambda: write_ids(asked("wanted.txt"), ids[3:6]))):
        asked.classify(candidates=asked("wanted.txt"), top_k=2)
    assert chosen(asked) <= set(ids[:3])
    assert asked.classify(candidates=asked("wanted.txt"), top_k=2).version == 2
    assert chosen(asked) <= set(ids[3:6])

    table, turned = pq.read_table(asked("classes.parquet")), list(range(19, -1, -1))
    with use_storage(
        Edited(
            asked("classes.parquet"),
            lambda: pq.write_table(table.take(turned), asked("classes.parquet")),
        )
    ):
        asked.classify(output="by-table")
    assert asked.classify(output="by-table").version == 2

    for name, more in (
        ("ids", {"ids": asked("i.txt")}),
        ("query-ids", {"query_ids": asked("i.txt"), "queries": None, "distance": "sdc"}),
    ):
        write_ids(asked("i.txt"), all_ids[:3])
        with use_storage(Edited(asked("i.txt"), lambda: write_ids(asked("i.txt"), all_ids[3:6]))):
            search(asked, output=asked(name), **more)
        assert search(asked, output=asked(name), **more).version == 2, name
