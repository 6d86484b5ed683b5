"""A reader sees one complete version or the one before it; nothing is ever overwritten."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from lossy import LossyFileSystem, emptied

from raypq.data.storage import digest
from raypq.data.store import snapshot, snapshot_summary
from raypq.data.store.receipts import Receipts
from raypq.data.store.shard_writer import Receipt, Source
from raypq.data.store.snapshot import Quarantined
from raypq.errors import ConflictError, InputError


def receipt(shard: str, *, path: str | None = None, size: int = 3) -> Receipt:
    source = Source(uri=f"/in/{shard}.parquet", size=1, modified="now")
    return Receipt(
        shard=shard, path=path or f"data/{shard}.0.parquet", bytes=size, rows=5, sha256="0" * 64,
        model="f", work="w", source=source,
    )  # fmt: skip


def commit(store: str, *shards: str, **more: Any) -> snapshot.Snapshot:
    return snapshot.commit(
        store,
        kind="codes",
        run_id="r",
        expected=list(shards),
        receipts=[receipt(name) for name in shards],
        **more,
    )


@pytest.fixture
def store(tmp_path) -> str:
    return str(tmp_path / "store")


def document(store: str, version: int = 1) -> Path:
    return Path(store, "snapshots", f"{version:020d}.json")


def test_versions_follow_each_other(store):
    assert snapshot.versions(store) == []
    first, second = commit(store, "a"), commit(store, "b", "a", summary={"x": 1})
    assert (first.version, first.parent, second.version, second.parent) == (1, None, 2, 1)
    assert snapshot.versions(store) == [1, 2]
    latest = snapshot.read(store)
    assert latest == second
    assert [item.shard for item in latest.shards] == ["a", "b"], "in shard order"
    assert latest.rows == 10
    assert latest.summary == {"x": 1}


def test_a_version_can_be_pinned(store):
    first = commit(store, "a")
    commit(store, "b")
    assert snapshot.read(store, 1) == first
    with pytest.raises(InputError, match=r"expected version 3, found versions \[1, 2\]"):
        snapshot.read(store, 3)


def test_quarantined_shards_are_part_of_the_version(store):
    left_out = Quarantined(shard="b", uri="/in/b.parquet", reason="NaN")
    made = snapshot.commit(
        store, kind="codes", run_id="r", expected=["a", "b"], receipts=[receipt("a")],
        quarantined=[left_out],
    )  # fmt: skip
    assert snapshot.read(store).quarantined == (left_out,)
    assert made.rows == 5


def test_a_shard_without_a_receipt_is_never_committed(store):
    with pytest.raises(AssertionError):
        snapshot.commit(
            store, kind="codes", run_id="r", expected=["a", "b"], receipts=[receipt("a")]
        )
    assert snapshot.versions(store) == []


def test_writers_that_race_all_get_a_version(store):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda i: commit(store, f"s{i}"), range(8)))
    assert sorted(item.version for item in made) == list(range(1, 9))
    for item in made:
        assert snapshot.read(store, item.version).nonce == item.nonce


def test_a_taken_number_is_never_written_over(store):
    commit(store, "a")
    before = document(store).read_bytes()
    commit(store, "b")
    assert document(store).read_bytes() == before


@pytest.fixture
def lossy() -> LossyFileSystem:
    return emptied()


@pytest.mark.parametrize(
    "answer", [FileExistsError("retried by the client"), TimeoutError(), OSError(5, "error 500")]
)
def test_a_lost_answer_is_read_back(lossy, answer):
    LossyFileSystem.answers.append(answer)
    made = commit("lossy://lost", "a")
    assert made.version == 1
    assert snapshot.versions("lossy://lost") == [1]
    assert snapshot.read("lossy://lost") == made


def test_a_request_that_failed_is_an_error(lossy):
    LossyFileSystem.done = False
    LossyFileSystem.answers.append(OSError(5, "error 500"))
    with pytest.raises(OSError, match="error 500"):
        commit("lossy://failed", "a")
    assert snapshot.versions("lossy://failed") == []
    assert commit("lossy://failed", "a").version == 1


def test_a_name_that_is_always_taken_gives_up(lossy, monkeypatch):
    monkeypatch.setattr(snapshot, "_PAUSE", 0.0)

    class Full(LossyFileSystem):
        protocol = "full"

        def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kw: Any) -> None:
            other = json.loads(value) | {"nonce": "another writer"}
            MemoryFileSystem.pipe_file(self, path, json.dumps(other).encode())
            raise FileExistsError(path)

    fsspec.register_implementation("full", Full, clobber=True)
    with pytest.raises(ConflictError, match="in a row were taken"):
        commit("full://full", "a")


def test_no_store(tmp_path):
    with pytest.raises(InputError, match="no such store"):
        snapshot.read(str(tmp_path / "none"))
    with pytest.raises(InputError, match="a folder without versions"):
        snapshot.read(str(tmp_path))


def test_other_files_are_no_versions(store):
    commit(store, "a")
    folder = document(store).parent
    for name in ("1.json", f"{2:020d}.json.tmp", "notes.txt", f".{3:020d}.json"):
        (folder / name).write_text("{}")
    assert snapshot.versions(store) == [1]


@pytest.mark.parametrize(
    "path", ["../x.parquet", "data/../../x.parquet", "/etc/passwd", "s3://bucket/x", "file:///x"]
)
def test_paths_stay_inside_the_store(store, path):
    commit(store, "a")
    content = json.loads(document(store).read_text())
    content["shards"][0]["path"] = path
    document(store).write_text(json.dumps(content))
    with pytest.raises(InputError) as caught:
        snapshot.read(store)
    assert "paths inside the store" in str(caught.value)
    assert path in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": 3}, "'format'"),
        ({"kind": "else"}, "'kind'"),
        ({"version": 7}, "expected version 1, found version 7"),
        ({"version": "x"}, "'version'"),
        ({"shards": None}, "'shards'"),
        ({"shards": [{"shard": "a"}]}, r"'shards\.0\.path'"),
        ({"new": 1}, "'new'"),
    ],
)
def test_an_edited_document_names_the_key(store, change, says):
    commit(store, "a")
    content = json.loads(document(store).read_text()) | change
    document(store).write_text(json.dumps(content))
    with pytest.raises(InputError, match=says) as caught:
        snapshot.read(store)
    assert str(document(store)) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"\xff\xfe"])
def test_a_document_that_is_none(store, content):
    commit(store, "a")
    document(store).write_bytes(content)
    with pytest.raises(InputError, match="a snapshot of format 1"):
        snapshot.read(store)


def test_sizes_are_verified(store):
    made = commit(store, "a")
    with pytest.raises(InputError, match=r"data/a\.0\.parquet.*no such file"):
        snapshot.verify_sizes(store, made)
    file = Path(store, "data", "a.0.parquet")
    file.parent.mkdir()
    file.write_bytes(b"1234")
    with pytest.raises(InputError, match="expected 3 bytes, found 4 bytes"):
        snapshot.verify_sizes(store, made)
    file.write_bytes(b"123")
    snapshot.verify_sizes(store, made)


@pytest.mark.parametrize("key", ["rows", "bytes"])
@pytest.mark.parametrize("value", [-1, 2**63, 10**30, 0.5, "many", None])
def test_a_number_that_no_file_can_have(store, key, value):
    commit(store, "a")
    content = json.loads(document(store).read_text())
    content["shards"][0][key] = value
    document(store).write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"'shards\.0\.{key}'"):
        snapshot.read(store)


def test_a_file_belongs_to_one_shard(store):
    commit(store, "a", "b")
    content = json.loads(document(store).read_text())
    content["shards"][1]["path"] = content["shards"][0]["path"]
    document(store).write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"each file once, found 'data/a\.0\.parquet' more"):
        snapshot.read(store)


@pytest.mark.parametrize("rows", [0, 4, 6, 2**62])
def test_rows_are_verified(store, rows):
    file = Path(store, "data", "a.0.parquet")
    file.parent.mkdir(parents=True)
    pq.write_table(pa.table({"id": [1, 2, 3, 4, 5]}), file)
    told = receipt("a", size=file.stat().st_size).model_copy(update={"sha256": digest(str(file))})
    made = snapshot.commit(store, kind="codes", run_id="r", expected=["a"], receipts=[told])
    snapshot.verify_content(store, made)
    false = made.model_copy(
        update={"shards": Receipts.of([told.model_copy(update={"rows": rows})])}
    )
    with pytest.raises(InputError, match=rf"a\.0\.parquet: expected {rows} rows, .* found 5 rows"):
        snapshot.verify_content(store, false)


RAW = (
    "Input should",
    "validation error",
    "pydantic",
    "unhashable",
    "argument after",
    "instance of",
)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"shards": [1]}, r"key 'shards\.0': expected a mapping with keys of .*, found 1"),
        ({"shards": 3}, r"key 'shards': expected a list .*, found 3"),
        ({"created": 3}, r"key 'created': expected text, found 3"),
        ({"version": "x"}, r"key 'version': expected a whole number, found 'x'"),
        ({"quarantined": [{"shard": []}]}, r"'quarantined\.0\.shard': expected text, found \[\]"),
        ({"summary": {"ids": {"unknown": [[]]}}}, r"key 'summary\.ids\.unknown': expected a list"),
        ({"summary": {"sidecars": {"counts": [1]}}}, r"key 'sidecars\.counts\.0': .*, found 1"),
        ({"summary": {"sidecars": {"counts": [{"path": 1}]}}}, r"counts\.0\.path': .*, found 1"),
        ({"summary": {"sidecars": 3}}, r"key 'sidecars': expected a mapping .*, found 3"),
    ],
)  # fmt: skip
def test_errors_of_damaged_snapshots_are_in_plain_words(store, change, says):
    commit(store, "a")
    content = json.loads(document(store).read_text()) | change
    document(store).write_text(json.dumps(content))
    with pytest.raises(InputError, match=says) as caught:
        snapshot.read(store)
    assert not any(word in str(caught.value) for word in RAW)


def test_a_snapshot_that_is_a_list_is_named(store):
    commit(store, "a")
    document(store).write_text("[1]")
    with pytest.raises(InputError, match=r"found expected a mapping of keys to values|a list"):
        snapshot.read(store)


@pytest.mark.parametrize("value", ["x", [1], True, float("inf"), 10**400, {"a": 1}])
def test_numbers_of_a_summary_are_checked_where_they_are_read(store, value):
    commit(store, "a")
    content = json.loads(document(store).read_text())
    content["summary"] = {"worked": {"images": value}}
    document(store).write_text(json.dumps(content))
    version = snapshot.read(store)
    with pytest.raises(InputError, match=r"key 'summary\.worked\.images': expected a finite num"):
        snapshot_summary.number(store, version, "worked", "images")
    with pytest.raises(InputError, match=r"expected a list, found|a mapping of keys"):
        snapshot_summary.items(store, version, "worked")
    assert snapshot_summary.number(store, version, "worked", "seconds") is None
    assert snapshot_summary.section(store, version, "models") == {}
