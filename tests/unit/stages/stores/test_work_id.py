"""Work ids: the same for ever where the output is the same, another one wherever it is not."""

from __future__ import annotations

from typing import Any

import pytest

from raypq.config import (
    ClassifyJob,
    ClusterSettings,
    Columns,
    DuplicatesJob,
    EncodeJob,
    SearchJob,
    Settings,
)
from raypq.data.storage import Shard
from raypq.stages.stores import work_id
from raypq.stages.stores.work_id import BY_JOB, Fields

MODEL = "f" * 64
CUDA = ClusterSettings(device="cuda")


def encode(**more: Any) -> str:
    values = {"model": "m", "features": ["f"], "output": "o"} | more
    return work_id.encode_work(MODEL, EncodeJob(**values))


def classify(candidates_digest: str | None = None, **more: Any) -> str:
    values = {"codes": "c", "classes": "k", "output": "o"} | more
    return work_id.classify_work(
        MODEL, ClassifyJob(**values), scores="cosine:0.0", classes="d" * 64,
        candidates=candidates_digest,
    )  # fmt: skip


def search(
    ids: str | None = None,
    query_ids: str | None = None,
    originals: list[Shard] | None = None,
    codes: tuple[str, ...] = ("a" * 64, "b" * 64),
    **more: Any,
) -> str:
    values = {"codes": "c", "queries": ["q"], "output": "o"} | more
    return work_id.search_work(
        MODEL, SearchJob(**values), metric="l2", codes=codes, ids=ids, query_ids=query_ids,
        originals=originals or [],
    )  # fmt: skip


def duplicates(**more: Any) -> str:
    values = {"codes": "c", "threshold": 0.05, "output": "o"} | more
    job = DuplicatesJob(**values)
    return work_id.duplicates_work(MODEL, job, metric="cosine", codes=["a" * 64, "b" * 64])


# What d7bb8bc computed. A line that must change means that every store is done anew by the next
# night: it must not.
GOLDEN = {
    "encode": (encode(), "8fe452035b992597665552a74c49949d"),
    "encode bf16": (encode(precision="bf16"), "bb4eff07d03671ffb70b2f2e3eb401be"),
    "encode columns": (
        encode(columns=Columns(id="key", image_size=32, width=7)),
        "92c9a69bb1b023acb03f03afd7a9ee16",
    ),
    "classify": (classify(), "b0ae3192657852dabcee9e1a2aeb9f18"),
    "classify unseen": (classify(candidates="unseen", top_k=3), "3207565783ba8887368322436e320660"),
    "classify odd name": (
        classify(candidates='möwen\u2028"\\'),
        "5ed4494f16a075512356228b558fd084",
    ),
    "search": (search(), "c163e3a64b2b40d3b0759350c5dde1eb"),
    "search filtered": (
        search(filter="label = 'ü'", top_k=3, distance="sdc", ids="1" * 64, query_ids="2" * 64),
        "1bd0a41623bfb4710331e07782ecdc35",
    ),
    "duplicates": (duplicates(), "0753debefac3ca3302d8cce78daa9144"),
    "duplicates 1e-07": (duplicates(threshold=1e-7), "f247b600832ca44cf7d249b7bba7968c"),
}


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_ids_of_version_1_never_change(name: str) -> None:
    found, golden = GOLDEN[name]
    assert found == golden


@pytest.mark.parametrize("kind", BY_JOB, ids=lambda kind: kind.__name__)
def test_every_setting_is_decided(kind: type[Settings]) -> None:
    """Does the output depend on it? Say so in raypq/stages/stores/work_id.py: ``later`` (it enters
    where it differs from its default), ``apart`` or ``none``. Never add to ``always``."""
    assert BY_JOB[kind].decided == set(kind.model_fields)


def test_a_setting_is_on_one_list() -> None:
    for fields in BY_JOB.values():
        lists = [set(fields.always), fields.later, fields.apart, fields.none]
        assert sum(len(one) for one in lists) == len(fields.decided)


def test_a_later_setting_enters_where_it_differs_from_its_default() -> None:
    class Later(EncodeJob):
        rounding: str = "even"

    fields = Fields(
        always=work_id.ENCODE.always,
        later=frozenset({"rounding"}),
        apart=work_id.ENCODE.apart,
        none=work_id.ENCODE.none,
    )
    job = EncodeJob(model="m", features=["f"], output="o")
    same = Later(model="m", features=["f"], output="o")
    other = Later(model="m", features=["f"], output="o", rounding="odd")
    for one in (fields, work_id.ENCODE):  # decided, and forgotten
        assert one.of(same) == work_id.ENCODE.of(job)
        assert one.of(other) == {**work_id.ENCODE.of(job), "rounding": "odd"}


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (encode, {"precision": "bf16"}),
        (encode, {"columns": Columns(feature="x")}),
        (encode, {"where": CUDA}),
        (classify, {"top_k": 3}),
        (classify, {"candidates_digest": "1" * 64}),
        (classify, {"where": CUDA}),
        (search, {"top_k": 3}),
        (search, {"distance": "sdc"}),
        (search, {"filter": "label = 'x'"}),
        (search, {"ids": "1" * 64}),
        (search, {"query_ids": "1" * 64}),
        (search, {"codes": ("a" * 64,)}),
        (search, {"where": CUDA}),
        (duplicates, {"threshold": 0.06}),
        (duplicates, {"where": CUDA}),
    ],
)
def test_what_an_output_depends_on_is_in_the_id(make: Any, change: dict[str, Any]) -> None:
    assert make(**change) != make()


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (encode, {"output": "x", "duplicate_ids": "ignore", "on_bad_shard": "quarantine"}),
        (encode, {"where": ClusterSettings(cluster="none", workers=7, threads=3)}),
        (classify, {"output": "x", "version": 3}),
        (search, {"output": "x", "queries": ["elsewhere"]}),
        (duplicates, {"output": "x", "max_pairs": 7}),
    ],
)
def test_what_no_output_depends_on_is_not(make: Any, change: dict[str, Any]) -> None:
    assert make(**change) == make()


def test_a_file_of_candidates_enters_by_its_content() -> None:
    one, two = (classify(candidates=path, candidates_digest="1" * 64) for path in ("a", "b"))
    assert one == two
    assert classify(candidates="a", candidates_digest="2" * 64) != one


@pytest.mark.parametrize("change", [{"uri": "/f/x"}, {"size": 2}, {"modified": "2"}])
def test_original_vectors_enter_by_what_tells_files_apart(change: dict[str, Any]) -> None:
    def with_original(**more: Any) -> str:
        values = {"index": 0, "uri": "/f/a", "stem": "a", "size": 1, "modified": "1"} | more
        return search(rerank=100, features=["f"], originals=[Shard(**values)])

    assert with_original() == with_original(index=3, stem="b")
    assert with_original(**change) != with_original()
