"""Parts of a folder of images: a partition, of limited size, that changes only where files do."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypq.data.layouts.image_folder import Part, list_parts
from raypq.data.storage import Shard
from raypq.data.storage.walk import Entry
from raypq.stages.stores.source_index import SourceIndex

MOST = 2048  # files of a part


def entries(names: Sequence[str], tag: str = "1") -> dict[str, Entry]:
    return {name: Entry(path=name, real=name, size=1, tag=tag) for name in names}


def parts(names: Sequence[str]) -> dict[str, Shard]:
    return {shard.uri: shard for shard in list_parts("/images", entries(names))}


def files(shard: Shard) -> set[str]:
    assert shard.files is not None
    return set(shard.files.column("name").to_pylist())


TREES = {
    "one folder": [f"{i}.jpg" for i in range(9000)],
    "classes": [f"n{i % 40:08d}/{i}.jpg" for i in range(9000)],
    "a folder each": [f"{i}/front.jpg" for i in range(9000)],
    "one large": [f"large/{i}.jpg" for i in range(6000)] + [f"{i}/a.jpg" for i in range(3000)],
    "equal names": [f"{i // 3}/{i % 3}.jpg" for i in range(9000)],
}


@pytest.mark.parametrize("tree", TREES)
def test_every_file_is_in_one_part_of_limited_size(tree):
    names = TREES[tree]
    shards = parts(names)
    assert sorted(name for shard in shards.values() for name in files(shard)) == sorted(names)
    assert all(0 < len(files(shard)) <= MOST for shard in shards.values())
    assert len(shards) < 6 * len(names) / MOST


@pytest.mark.parametrize("tree", TREES)
def test_only_the_parts_of_changed_files_change(tree):
    names = TREES[tree]
    changed = set(random.Random(0).sample(names, 3))
    before = parts(names)
    listed = entries(names) | entries(sorted(changed), tag="2")
    after = {shard.uri: shard for shard in list_parts("/images", listed)}
    assert after.keys() == before.keys()
    for uri, shard in after.items():
        assert (shard.modified != before[uri].modified) == bool(files(shard) & changed)


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_part_overlaps_every_part_that_its_files_were_in(tree, share):
    names = TREES[tree]
    fewer = random.Random(0).sample(names, int(share * len(names)))
    for old, new in ((names, fewer), (fewer, names)):
        before, after = parts(old), parts(new)
        index = SourceIndex(before)
        for uri, shard in after.items():
            overlapping = index.overlapping(uri)
            expected = {other for other in before if files(before[other]) & files(shard)}
            assert expected <= set(overlapping)
            assert len(overlapping) == len(set(overlapping))


def test_files_without_a_version_tag_are_told_apart_by_their_content(tmp_path):
    """As every other file on a storage that gives no tags."""
    found = set()
    for content in (b"one", b"two"):
        (tmp_path / "a.jpg").write_bytes(content)
        entry = Entry(path="a.jpg", real="a.jpg", size=3, tag=None)
        (shard,) = list_parts(str(tmp_path), {"a.jpg": entry})
        found.add(shard.modified)
    assert len(found) == 2


def test_the_order_of_a_listing_does_not_matter():
    names = TREES["classes"]
    assert parts(names) == parts(names[::-1])


@given(st.integers(0, 2**64 - 1), st.integers(0, 64), st.integers(0, 64))
def test_a_uri_is_read_back(key, bits, fewer):
    part = Part(root="/a/b", prefix=key >> (64 - bits), bits=bits)
    assert Part.of(part.uri) == part
    outer = Part(root="/a/b", prefix=key >> (64 - min(fewer, bits)), bits=min(fewer, bits))
    for first, second in ((part, outer), (outer, part)):
        assert SourceIndex([first.uri]).overlapping(second.uri) == [first.uri]
    assert SourceIndex([part.uri]).overlapping(Part(root="/a", prefix=0, bits=0).uri) == []


@pytest.mark.parametrize(
    "uri", ["/a/b.parquet", "/a/x_3.imagefolder", "/a/3.imagefolder", "s3://b"]
)
def test_other_uris_are_no_parts(uri):
    assert Part.of(uri) is None
    assert SourceIndex([uri]).overlapping(uri) == [uri]
