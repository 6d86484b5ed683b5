"""Images of a night by what happened to them; every image of both versions is counted once."""

from __future__ import annotations

from itertools import chain
from types import SimpleNamespace
from typing import Any

import pyarrow as pa

from raypq.config import Columns
from raypq.data.store.receipts import Receipts
from raypq.data.store.shard_writer import RunCounts
from raypq.stages.nightly import image_counts

JOB: Any = SimpleNamespace(columns=Columns(), output="codes")


def receipt(shard: str, rows: int, path: str, **counts: int) -> Any:
    return SimpleNamespace(
        shard=shard, rows=rows, path=path, counts=RunCounts(**counts) if counts else None
    )


def task(stem: str, before: list[Any], files: list[str] | None = None) -> Any:
    batch = files and pa.RecordBatch.from_pydict({"name": files})
    shard = SimpleNamespace(stem=stem, uri=f"no/{stem}.parquet", size=0, files=batch)
    return SimpleNamespace(shard=shard, before=tuple(item for item in before if item.shard == stem))


def plan(latest: list[Any] | None, **lists: str) -> Any:
    """A plan whose tasks are those of the lists, by shard."""
    tasks = {
        name: [task(stem, latest or []) for stem in lists.get(name, "")]
        for name in ("new", "changed", "output_missing", "migrating", "kept")
    }
    version = latest and SimpleNamespace(
        shards=Receipts.of(latest), rows=sum(item.rows for item in latest)
    )
    return SimpleNamespace(latest=version, tasks=[*chain(*tasks.values())], **tasks)


def test_every_kind_of_shard() -> None:
    before = [receipt(name, 10, f"{name}.1") for name in "abcdefgh"]
    night = plan(before, new="n", changed="bcdg", migrating="e", kept="a", output_missing="h")
    after = [
        receipt("a", 10, "a.1"),  # kept
        receipt("b", 12, "b.2"),  # rows of features, 2 more
        # Images: 7 kept, 1 changed, 1 new, 1 undecodable, 1 gone; 2 new ones are undecodable.
        receipt("c", 9, "c.2", kept=7, changed=1, known_left_out=1, left_out=3),
        receipt("e", 10, "e.2"),  # migrated
        receipt("g", 10, "g.2", kept=0, again=9, changed=1),  # images under another model
        receipt("h", 8, "h.2", left_out=2),  # images whose code file was gone
        receipt("n", 5, "n.2"),  # new
    ]  # d is left out tonight, f is gone
    counts = image_counts.of_night(night, night.tasks, after, JOB)
    assert counts.as_dict() == {
        "new": 2 + 1 + 5,
        "changed": 10 + 1 + 1,
        "removed": 1 + 10,
        "kept": 10 + 7,
        "encoded_again": 10 + 9 + 8,
        "left_out": 3 + 10 + 2,
    }
    assert str(counts) == ("8 new, 12 changed, 11 removed, 17 kept, 27 encoded again, 15 left out")
    in_last = counts.kept + counts.changed + counts.encoded_again + counts.removed
    assert in_last + 1 + 2 + 10 == 80, "the others of the last version are left out"
    in_new = counts.kept + counts.changed + counts.encoded_again + counts.new
    assert in_new == sum(item.rows for item in after)


def test_a_new_part_of_a_folder_that_is_left_out() -> None:
    failed = task("a", [], ["x.png", "y.png", "z.png"])
    counts = image_counts.of_night(plan(None), [failed], [], JOB)
    assert counts.as_dict()["left_out"] == 3


def test_the_first_night_and_an_idle_one() -> None:
    after = [receipt("a", 10, "a.1"), receipt("b", 10, "b.1")]
    night = plan(None, new="ab")
    counts = image_counts.of_night(night, night.tasks, after, JOB)
    assert (counts.new, counts.changed, counts.removed, counts.kept) == (20, 0, 0, 0)
    assert image_counts.of_idle_night(plan(after)).kept == 20
