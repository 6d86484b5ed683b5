"""Images of a night by what happened to them; every image of both versions is counted once."""

from __future__ import annotations

from itertools import chain
from types import SimpleNamespace
from typing import Any

from raypq.stages.nightly import image_counts


def receipt(shard: str, rows: int, path: str) -> Any:
    return SimpleNamespace(shard=shard, rows=rows, path=path)


def plan(latest: list[Any] | None, **lists: list[str]) -> Any:
    """A plan whose tasks are those of the lists, by shard."""
    tasks = {
        name: [SimpleNamespace(shard=SimpleNamespace(stem=stem)) for stem in lists.get(name, [])]
        for name in ("new", "changed", "output_missing", "migrating", "kept")
    }
    version = latest and SimpleNamespace(shards=latest, rows=sum(item.rows for item in latest))
    return SimpleNamespace(latest=version, tasks=[*chain(*tasks.values())], **tasks)


def encoded(item: Any, **counts: Any) -> Any:
    return SimpleNamespace(
        receipt=item, **{"left_out": 0, "unchanged": 0, "changed": None, **counts}
    )


def test_every_kind_of_shard() -> None:
    before = [receipt(name, 10, f"{name}.1") for name in "abcdef"]
    night = plan(before, new=["n"], changed=["b", "c", "d"], migrating=["e"], kept=["a"])
    after = [
        receipt("a", 10, "a.1"),  # kept
        receipt("b", 12, "b.2"),  # rows of features, 2 more
        receipt("c", 9, "c.2"),  # images: 7 known, 1 changed, 1 new, 2 gone
        receipt("e", 10, "e.2"),  # migrated
        receipt("n", 5, "n.2"),  # new
    ]  # d is left out tonight, f is gone
    results = [encoded(item) for item in (after[1], after[3], after[4])]
    results.append(encoded(after[2], unchanged=7, changed=1, left_out=3))
    counts = image_counts.of_night(night, results, after)
    assert counts.as_dict() == {
        "new": 2 + 1 + 5,
        "changed": 10 + 1,
        "removed": 2 + 10,
        "kept": 10 + 7,
        "encoded_again": 10,
        "left_out": 3 + 10,
    }
    assert str(counts) == ("8 new, 11 changed, 12 removed, 17 kept, 10 encoded again, 13 left out")


def test_the_first_night_and_an_interrupted_one() -> None:
    after = [receipt("a", 10, "a.1"), receipt("b", 10, "b.1")]
    counts = image_counts.of_night(plan(None, new=["a", "b"]), [encoded(after[0])], after)
    assert (counts.new, counts.changed, counts.removed, counts.kept) == (20, 0, 0, 0)
    assert image_counts.of_idle_night(plan(after)).kept == 20
