"""Ids that are there twice are found, whatever memory there is, and only those."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypq.data import duplicate_ids
from raypq.data.duplicate_ids import IdFile, find_duplicate_ids, hashes


@pytest.fixture
def files(tmp_path):
    """Writes lists of ids: ``files(["a", "b"], ["c"])``."""

    def files(*parts):
        made = []
        for number, ids in enumerate(parts):
            path = tmp_path / f"{number}.parquet"
            pq.write_table(pa.table({"id": pa.array(ids)}), path)
            made.append(IdFile(uri=str(path), name=f"in-{number}", rows=len(ids)))
        return made

    return files


@pytest.mark.parametrize("in_memory", [1, 2, 3, 1000])
def test_within_and_across(files, in_memory):
    found = find_duplicate_ids(
        files(["a", "b", "c", "b"], ["", "é", "a"], ["d", "a"]), in_memory=in_memory
    )
    assert found.rows == 3
    assert [(one.id, one.rows) for one in found.examples] == [
        ("a", ["in-0, row 0", "in-1, row 2", "in-2, row 1"]),
        ("b", ["in-0, row 1", "in-0, row 3"]),
    ]
    assert str(found).startswith("3 row(s) that repeat an earlier id: 'a' in in-0, row 0 and")


@pytest.mark.parametrize("in_memory", [7, 1 << 20])
def test_none(files, in_memory):
    ids = [[f"{part}-{row}" for row in range(50)] for part in range(3)]
    assert find_duplicate_ids(files(*ids), in_memory=in_memory) is None
    assert (
        find_duplicate_ids(files(list(range(50)), list(range(50, 90))), in_memory=in_memory) is None
    )
    assert find_duplicate_ids([]) is None


def test_integers(files):
    found = find_duplicate_ids(files([1, 2, -3], [2, 9]))
    assert (found.rows, found.examples[0].id) == (1, "2")


def test_equal_hashes_of_unequal_ids_are_no_duplicates(files, monkeypatch):
    monkeypatch.setattr(duplicate_ids, "hashes", lambda ids: np.full(len(ids), 7, np.uint64))
    assert find_duplicate_ids(files(["a", "b"], ["c"])) is None
    found = find_duplicate_ids(files(["a", "b"], ["c", "b"]))
    assert (found.rows, len(found.examples)) == (1, 1)


def test_very_many(files, monkeypatch):
    monkeypatch.setattr(duplicate_ids, "COMPARED", 100)
    found = find_duplicate_ids(
        files([f"id{i}" for i in range(2000)], [f"id{i}" for i in range(2000)])
    )
    assert found.rows == 2000
    assert len(found.examples) == 5


def test_hashes_do_not_depend_on_the_batch():
    rng = np.random.default_rng(0)
    ids = pa.array(["".join(map(chr, rng.integers(1, 1000, rng.integers(9)))) for _ in range(500)])
    whole = hashes(ids)
    assert np.array_equal(whole[100:200], hashes(ids.slice(100, 100)))
    assert len(np.unique(whole)) == len(set(ids.to_pylist()))


def test_a_million_ids_have_as_many_hashes():
    ids = pa.array([f"image-{i:09d}" for i in range(1_000_000)])
    found = np.concatenate([hashes(ids.slice(i, 65_536)) for i in range(0, len(ids), 65_536)])
    assert len(np.unique(found)) == len(ids)
