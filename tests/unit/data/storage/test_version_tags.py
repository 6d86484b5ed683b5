"""What tells two states of a file apart, as each storage tells it; and which file is the same."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import pytest

from raypq.config.places import path_of
from raypq.data.storage import Shard, canonical, list_shards
from raypq.data.storage.place import uri_of
from raypq.data.storage.tags import version_tag
from raypq.data.store.shard_writer import Source

MOMENT = datetime(2026, 1, 2, 3, 4, 5, 6, UTC)
LATER = datetime(2026, 1, 2, 3, 4, 6, tzinfo=UTC)
FILE = {"name": "b/a.parquet", "size": 10, "type": "file"}

# What the filesystems' own sources put into an info; the value of each tag, and another one.
BACKENDS: dict[str, tuple[dict[str, Any], str, str]] = {
    "local": ({"mtime": 1.7e9, "created": 1.0, "ino": 1, "islink": False}, "mtime", "1700000000.0"),
    "s3 list": ({"ETag": '"ab-2"', "LastModified": MOMENT, "StorageClass": "STANDARD"},
                "ETag", '"ab-2"'),
    "s3 head": ({"ETag": '"ab-2"', "LastModified": MOMENT, "VersionId": None}, "ETag", '"ab-2"'),
    "s3 without etag": ({"ETag": "", "LastModified": MOMENT}, "LastModified", str(MOMENT)),
    "azure": ({"etag": '"0x8DC"', "last_modified": MOMENT, "creation_time": MOMENT,
               "metadata": {}, "content_settings": {"content_md5": None}}, "etag", '"0x8DC"'),
    "azure without etag": ({"etag": None, "last_modified": MOMENT}, "last_modified", str(MOMENT)),
    "gcs": ({"etag": "CJ=", "updated": "2026-01-02T03:04:05Z", "generation": "17", "md5Hash": "x",
             "mtime": MOMENT, "ctime": MOMENT}, "mtime", str(MOMENT)),
    "gcs of old": ({"generation": "17", "md5Hash": "x", "updated": "2026"}, "generation", "17"),
    "hdfs": ({"mtime": MOMENT}, "mtime", str(MOMENT)),
    "webhdfs": ({"modificationTime": 1700000000123, "length": 10, "accessTime": 1},
                "modificationTime", "1700000000123"),
    "http": ({"ETag": 'W/"x"', "Last-Modified": "Fri", "url": "u", "mimetype": "m"},
             "ETag", 'W/"x"'),
    "http without etag": ({"Last-Modified": "Fri, 02 Jan 2026"}, "Last-Modified",
                          "Fri, 02 Jan 2026"),
    "sftp": ({"mtime": MOMENT, "time": MOMENT, "uid": 0}, "mtime", str(MOMENT)),
    "ftp": ({"modify": "20260102030405"}, "modify", "20260102030405"),
    "memory list": ({"created": MOMENT.timestamp()}, "created", str(MOMENT.timestamp())),
    "memory info": ({"created": MOMENT}, "created", str(MOMENT.timestamp())),
    "webdav": ({"etag": "e1", "modified": MOMENT, "created": MOMENT}, "etag", "e1"),
    "hugging face": ({"blob_id": "ab12", "lfs": None, "last_commit": None}, "blob_id", "ab12"),
    "zip": ({"CRC": 99, "date_time": (1980, 1, 1, 0, 0, 0)}, "CRC", "99"),
    "epoch": ({"mtime": 0.0}, "mtime", "0.0"),
}  # fmt: skip


@pytest.mark.parametrize("backend", sorted(BACKENDS))
def test_every_storage_has_a_tag_that_changes(backend: str) -> None:
    info, key, tag = BACKENDS[backend]
    assert version_tag({**FILE, **info}) == tag
    other = LATER if isinstance(info[key], datetime) else type(info[key])("8")
    assert version_tag({**FILE, **info, key: other}) != tag


@pytest.mark.parametrize("info", [{}, {"ETag": ""}, {"etag": None, "mtime": None}, {"lfs": {}}])
def test_no_tag_is_told_as_none(info: dict[str, Any]) -> None:
    assert version_tag({**FILE, **info}) is None


def test_a_tag_is_the_same_in_a_list_and_on_its_own() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/tags/a.parquet", b"1234")
    (listed,), (alone,) = list_shards(["memory://tags"]), list_shards(["memory://tags/a.parquet"])
    assert listed == alone
    memory.pipe_file("/tags/a.parquet", b"5678")
    assert list_shards(["memory://tags"]) != [listed]


@pytest.mark.parametrize(
    ("uri", "name", "expected"),
    [("webhdfs://h:9870/x", "/x/a", "webhdfs://h:9870/x/a"),
     ("memory://x", "/x/a", "memory:///x/a"), ("http://h/x", "http://h/x/a", "http://h/x/a")],
)  # fmt: skip
def test_a_uri_keeps_the_host_that_it_is_on(uri: str, name: str, expected: str) -> None:
    kind = fsspec.get_filesystem_class(uri.partition(":")[0])
    assert uri_of(kind.__new__(kind), name, uri) == expected


def test_local_uris_have_one_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real/deep")
    for uri in ("a/b", "./a//b", "a/./b/", "x/../a/b", "~/a/b", f"file://{tmp_path}/a/b",
                f"local://{tmp_path}/a/b", f"/{tmp_path}//a/b",
                f"{tmp_path}/a/b/c/.."):  # fmt: skip
        assert canonical(uri) == f"{tmp_path}/a/b", uri
    assert canonical("link/x") == f"{tmp_path}/link/x", "a link stays as it is named"
    assert canonical("link/../x") == f"{tmp_path}/real/x", "as the system goes"
    assert canonical("~nobody-of-this-name/x") == f"{tmp_path}/~nobody-of-this-name/x"
    assert canonical("s3://b/a//b/../c") == "s3://b/a//b/../c", "keys are no paths"


def source(**more: Any) -> Source:
    return Source(**{"uri": "/f/a.parquet", "size": 4, "modified": "1.5", **more})


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (source(), source(), True),
        (source(), source(uri="/f//x/../a.parquet"), True),
        (source(), source(uri="file:///f/a.parquet"), True),
        (source(), source(uri="/g/a.parquet"), False),
        (source(), source(size=5), False),
        (source(), source(modified="1.6"), False),
        (source(modified="None"), source(modified="None"), False),
        (source(modified="ab" * 32), source(uri="codes/x", modified="ab" * 32), True),
        (source(modified="ab" * 32), source(modified="ac" * 32), False),
        (source(modified=""), source(uri="elsewhere", modified=""), True),
    ],
)
def test_which_file_is_the_same(one: Source, other: Source, same: bool) -> None:
    assert one.same_file(other) == other.same_file(one) == same


def test_a_source_says_what_its_shard_does(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"12345")
    os.utime(tmp_path / "a.parquet", ns=(0, 1_700_000_000_123_456_789))
    (shard,) = list_shards([str(tmp_path)])
    assert Source.of(shard).same_file(Source.of(replace(shard, stem="another")))
    assert shard == Shard(index=0, uri=f"{tmp_path}/a.parquet", stem=shard.stem, size=5,
                          modified=str(os.stat(shard.uri).st_mtime))  # fmt: skip


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("FILE:///X/a", "file:///X/a"), ("Local:///X", "local:///X"), ("S3://Bucket/K", "s3://Bucket/K"),
        ("GS://b", "gs://b"), ("SimpleCache::S3://B/x", "simplecache::s3://B/x"),
        ("ZIP://A.pq::FILE:///X.zip", "zip://A.pq::file:///X.zip"), ("/X/FILE://x", "/X/FILE://x"),
        ("A::b", "A::b"), ("X/S3", "X/S3"),
    ],
)  # fmt: skip
def test_schemes_are_the_same_in_any_case(given: str, meant: str) -> None:
    assert path_of(given) == meant


@pytest.mark.parametrize("scheme", ["", "file://", "FILE://", "local://", "LOCAL://", "Local://"])
def test_local_files_are_one_file_however_their_scheme_is_written(
    tmp_path: Path, scheme: str
) -> None:
    (tmp_path / "a.parquet").write_bytes(b"12345")
    (tmp_path / "b.parquet").symlink_to("a.parquet")
    assert list_shards([path_of(f"{scheme}{tmp_path}")]) == list_shards([str(tmp_path)])
