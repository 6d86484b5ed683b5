"""Names from a store's files that become paths: none leads out, and old ones still open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raypq.data.store import names, snapshot
from raypq.data.store.shard_writer import Receipt, Source
from raypq.data.store.snapshot import Quarantined
from raypq.errors import InputError

OUTSIDE = ["../x", "a/../../x", "/etc/passwd", "a/b", "..", ".", ".hidden", "s3://bucket/x",
           "file:///x", "a\0b", "a\nb", "a\x7fb", "..\\x", "a\\..\\b", "a\ud800b"]  # fmt: skip
ODD = ["date=2026-01-01--part-0", "möwen & co--part 0", "a..b", "hour=12:00", "100%", "~", "日本語",
       "x" * 200, "a--b-0123456789ab", "[1]", "'quoted'", "-rf"]  # fmt: skip


def stored(tmp_path: Path, **changes: Any) -> Path:
    """A store whose snapshot was edited: ``shards.work=...`` and so on."""
    source = Source(uri="/in/a", size=1, modified="1")
    receipt = Receipt(
        shard="a", path="data/a.0.parquet", bytes=1, rows=1, sha256="0", model="m", work="w",
        source=source,
    )  # fmt: skip
    aside = Quarantined(shard="b", uri="/in/b", reason="NaN", source=source, work="w")
    snapshot.commit(
        str(tmp_path), kind="codes", run_id="r", expected=["a", "b"], receipts=[receipt],
        quarantined=[aside],
    )  # fmt: skip
    place = tmp_path / "snapshots" / f"{1:020d}.json"
    content = json.loads(place.read_text())
    for key, value in changes.items():
        part, _, name = key.partition("__")
        content[part][0][name] = value
    place.write_text(json.dumps(content))
    return place


@pytest.mark.parametrize("value", OUTSIDE)
@pytest.mark.parametrize(
    "field",
    ["shards__shard", "shards__work", "shards__model", "quarantined__shard", "quarantined__work"],
)
def test_no_name_in_a_snapshot_leads_elsewhere(tmp_path: Path, field: str, value: str) -> None:
    place = stored(tmp_path, **{field: value})
    with pytest.raises(InputError) as caught:
        snapshot.read(str(tmp_path))
    assert str(place) in str(caught.value)
    assert f"'{field.replace('__', '.0.')}'" in str(caught.value)


@pytest.mark.parametrize(
    "path", ["../x", "data/../../x", "/etc/passwd", "s3://b/x", "file:///x", "data/a\0b", "", "."]
)
def test_no_path_leads_elsewhere(tmp_path: Path, path: str) -> None:
    stored(tmp_path, shards__path=path)
    with pytest.raises(InputError, match=r"'shards\.0\.path'"):
        snapshot.read(str(tmp_path))


@pytest.mark.parametrize("stem", ODD)
def test_odd_names_of_early_stores_open(tmp_path: Path, stem: str) -> None:
    stored(tmp_path, shards__shard=stem, shards__path=f"data/{stem}.{'0' * 32}.parquet")
    assert snapshot.read(str(tmp_path)).shards[0].shard == stem
    assert names.check_stem(stem) == stem


def test_a_number_that_no_name_can_follow(tmp_path: Path) -> None:
    from raypq.errors import ConflictError

    place = stored(tmp_path)
    place.rename(place.with_name(f"{10**20 - 1}.json"))
    with pytest.raises(ConflictError, match="no run made this version"):
        snapshot.commit(str(tmp_path), kind="codes", run_id="r", expected=[], receipts=[])


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"format": 3}, "format"),
        ({"compression": "zstd"}, "compression"),
        ({"shards.0": {"encrypted": True}}, "shards.0.encrypted"),
        ({"quarantined.0": {"tries": 3}}, "quarantined.0.tries"),
    ],
)
def test_a_snapshot_of_a_newer_raypq_is_told(
    tmp_path: Path, change: dict[str, Any], key: str
) -> None:
    place = stored(tmp_path)
    content = json.loads(place.read_text())
    for name, value in change.items():
        part, _, index = name.partition(".")
        if index:
            content[part][int(index)] |= value
        else:
            content[name] = value
    place.write_text(json.dumps(content))
    with pytest.raises(InputError, match="written by a newer raypq: upgrade raypq") as caught:
        snapshot.read(str(tmp_path))
    assert f"key '{key}'" in str(caught.value)


@pytest.mark.parametrize("key", ["worked", "drift", "result", "run"])
@pytest.mark.parametrize("value", ["x", 3, [], [1]])
def test_a_section_of_a_summary_that_is_none(tmp_path: Path, key: str, value: Any) -> None:
    place = stored(tmp_path)
    content = json.loads(place.read_text())
    content["summary"][key] = value
    place.write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"key 'summary.{key}': expected a section"):
        snapshot.read(str(tmp_path))
