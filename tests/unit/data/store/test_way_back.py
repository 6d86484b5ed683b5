"""What is written can be read by the commit that wrote ``tests/stores/d7bb8bc``: it refuses keys
that it does not know, so nobody could go back to it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raypq.data.store import snapshot
from raypq.data.store.shard_writer import Receipt, RunCounts, Source
from raypq.data.store.snapshot import Quarantined
from raypq.stages.stores import garbage, versions

KNOWN = {
    "snapshot": {"format", "kind", "version", "parent", "nonce", "run_id", "created", "shards",
                 "quarantined", "summary"},
    "receipt": {"shard", "path", "bytes", "rows", "sha256", "model", "work", "source", "stats"},
    "source": {"uri", "size", "modified", "sha256"},
    "quarantined": {"shard", "uri", "reason", "source", "work"},
}  # fmt: skip


def receipt(name: str, ids: str | None) -> Receipt:
    return Receipt(
        shard=name, path=f"data/{name}.0.parquet", bytes=1, rows=1, sha256="0", model="m", work="w",
        source=Source(uri=f"/in/{name}", size=1, modified="1"), ids=ids, counts=RunCounts(kept=1),
    )  # fmt: skip


@pytest.mark.parametrize(
    "kinds",
    [("string", "string"), ("int64", "int64"), (None, "string"), ("int64", None), (None, None)],
)
def test_no_key_is_new(tmp_path: Path, kinds: tuple[str | None, ...]) -> None:
    source = Source(uri="/in/x", size=1, modified="1")
    receipts = [receipt(name, kind) for name, kind in zip("äb", kinds, strict=True)]
    made = snapshot.commit(
        str(tmp_path), kind="codes", run_id="r", expected=["ä", "b", "x"], receipts=receipts,
        quarantined=[Quarantined(shard="x", uri="/in/x", reason="NaN", source=source, work="w")],
        summary={"fingerprint": "m", "share": float("nan"), "ids": {"type": "stale"}},
    )  # fmt: skip
    document = json.loads((tmp_path / snapshot.path_of(1)).read_text("utf-8"))
    assert document.keys() == KNOWN["snapshot"]
    for item in document["shards"]:
        assert item.keys() <= KNOWN["receipt"]
        assert item["source"].keys() == KNOWN["source"]
    assert document["quarantined"][0].keys() == KNOWN["quarantined"]
    back = snapshot.read(str(tmp_path))
    assert back.shards == made.shards
    assert {item.shard: item.ids for item in back.shards} == dict(zip("äb", kinds, strict=True))


def test_every_key_is_decided() -> None:
    """A field more, in any of these, keeps that commit from reading a version: put what it says
    into the summary, as ``ids`` is, or into journals alone, as ``counts`` are."""
    assert set(snapshot.Snapshot.model_fields) == KNOWN["snapshot"]
    assert set(Receipt.model_fields) - {"ids", "counts"} == KNOWN["receipt"]
    assert set(Source.model_fields) == KNOWN["source"]
    assert set(Quarantined.model_fields) == KNOWN["quarantined"]


def commit(store: Path, names: str) -> snapshot.Snapshot:
    """A version of shards, each a file that is there."""
    made = []
    for name in names:
        path = store / "data" / f"{name}.0.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
        made.append(receipt(name, None).model_copy(update={"sha256": "0" * 64}))
    return snapshot.commit(str(store), kind="codes", run_id="r", expected=[*names], receipts=made)


def test_a_store_goes_back_to_its_last_version_of_format_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``docs/upgrading.md`` says for a store of more than 256 shards, here of more than 2."""
    store, backup = tmp_path / "codes", tmp_path / "backup"
    backup.mkdir()
    old = commit(store, "abc")
    monkeypatch.setattr(snapshot, "MOST_INLINE", 2)
    for names in ("abcd", "bcde"):
        assert commit(store, names).format == 2
    garbage.collect(str(store), keep=3, older_than_days=0, remove=True)
    new = [
        path
        for path in sorted((store / "snapshots").iterdir())
        if any(line.startswith(' "format": 2') for line in path.read_text().splitlines())
    ]
    assert [path.name for path in new] == [f"{version:020d}.json" for version in (2, 3)]
    for path in reversed(new):
        path.rename(backup / path.name)
    back = snapshot.read(str(store))
    assert (back.version, back.format, back.shards) == (1, 1, old.shards)
    assert versions.verify(store)["files"] == 3
    document = json.loads((store / snapshot.path_of(1)).read_text("utf-8"))
    assert document.keys() == KNOWN["snapshot"]

    for path in new:  # forward again
        (backup / path.name).rename(path)
    assert versions.verify(store) == {"version": 3, "files": 4, "models": 0, "verified": "size"}


def test_a_store_that_went_back_takes_further_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "MOST_INLINE", 2)
    commit(tmp_path, "ab")
    commit(tmp_path, "abcd")
    (tmp_path / snapshot.path_of(2)).unlink()
    monkeypatch.setattr(snapshot, "MOST_INLINE", 256)
    made = commit(tmp_path, "abce")
    assert (made.version, made.parent, made.format) == (2, 1, 1)
    assert versions.diff(tmp_path, 1, 2)["added"] == ["c", "e"]


@pytest.mark.parametrize(
    "noted", [None, 3, [], {}, {"type": "float"}, {"type": "string", "unknown": 3}]
)
def test_a_summary_that_makes_no_sense_is_an_error_or_says_nothing(
    tmp_path: Path, noted: object
) -> None:
    from raypq.errors import InputError

    snapshot.commit(
        str(tmp_path), kind="codes", run_id="r", expected=["a"], receipts=[receipt("a", None)]
    )
    path = tmp_path / snapshot.path_of(1)
    document = json.loads(path.read_text())
    document["summary"]["ids"] = noted
    path.write_text(json.dumps(document))
    if isinstance(noted, dict) and noted:
        with pytest.raises(InputError):
            snapshot.read(str(tmp_path))
    else:
        assert snapshot.read(str(tmp_path)).shards[0].ids is None
