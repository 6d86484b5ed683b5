"""Input that is damaged or made to do harm: bombs, edited manifests, flipped bits, links, ids."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from broken import Place, Table, check, raypq

from raypq.data import arrays
from raypq.data.storage import open_parquet
from raypq.data.store import snapshot
from raypq.errors import InputError

TABLE = Table()
case = TABLE.case


@contextmanager
def edited(snapshot_file: Path) -> Iterator[list[dict[str, Any]]]:
    """The shards of a snapshot file, written back as they are left."""
    document = json.loads(snapshot_file.read_text())
    yield document["shards"]
    snapshot_file.write_text(json.dumps(document))


def manifest(place: Place, **change: Any) -> Path:
    """Encodes, and edits the snapshot by hand."""
    place.run(*place.encode())
    file = next(Path(place("codes"), "snapshots").iterdir())
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    return file


def code_file(place: Place) -> Path:
    place.run(*place.encode())
    return sorted(Path(place("codes"), "data").iterdir())[0]


def note(path: Path, **change: bytes) -> None:
    """Rewrites a Parquet file with other metadata, keeping its size out of the question."""
    table = pq.read_table(path)
    metadata = table.schema.metadata | {f"raypq.{k}".encode(): v for k, v in change.items()}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    folder = path.parents[1]
    file = next((folder / "snapshots").iterdir())
    with edited(file) as shards:
        for entry in shards:
            if entry["path"] == f"data/{path.name}":
                entry["bytes"] = path.stat().st_size


# ---- files that ask for more than they hold ------------------------------------------------


@case(1, "part-0.parquet, row group 0, column 'feature", "grows at most 200 times",
      "RAYPQ_STORAGE_EXPANSION", "bytes that ask for 457 MiB")  # fmt: skip
def a_small_file_that_asks_for_half_a_gigabyte(place):
    X = np.zeros((120_000, 1000), np.float32)
    place.change(
        "test/part-0.parquet",
        lambda table: pa.table(
            {"id": [f"i{row}" for row in range(len(X))], "feature": arrays.fixed_list(X)}
        ),
    )
    assert (place.test / "part-0.parquet").stat().st_size < 3 << 20
    return place.encode()


@case(1, "part-0.parquet, row group 0, column 'feature", "bytes that ask for 76 MiB")
def one_row_that_is_a_list_of_twenty_million_values(place):
    rows = pa.LargeListArray.from_arrays(
        pa.array([0, 20_000_000], pa.int64()), pa.array(np.zeros(20_000_000, np.float32))
    )
    table = pa.table({"id": ["bomb"], "feature": rows})
    pq.write_table(table, place.test / "part-0.parquet")
    return place.encode()


@case(1, "part-1.parquet, row group 0, column 'id'", "bytes that ask for 95 MiB")
def a_page_that_unpacks_to_a_hundred_megabytes(place):
    X = place.vectors("test/part-1.parquet")
    ids = pa.array([f"{row}" + "x" * 2_500_000 for row in range(40)])
    table = pa.table({"id": ids, "feature": arrays.fixed_list(X[:40])})
    pq.write_table(
        table, place.test / "part-1.parquet", compression="zstd", use_dictionary=False,
        data_page_size=1 << 30, write_statistics=False,
    )  # fmt: skip
    return place.encode()


@case(1, "classes.parquet, row group 0, column 'name'", "bytes that ask for")
def a_class_table_that_is_a_bomb(place):
    names = pa.array([str(t) + "x" * 8_000_000 for t in range(12)])
    place.change("classes.parquet", lambda table: table.set_column(1, "name", names))
    table = pq.read_table(place.classes)
    pq.write_table(table, place.classes, compression="zstd", use_dictionary=False)
    return place.fit()


@case(1, "part-0.parquet, row group 0, column 'feature", "at most 1 MiB in one row group",
      "RAYPQ_STORAGE_ROW_GROUP_MIB", "found 3 MiB; write smaller row groups")  # fmt: skip
def a_row_group_beyond_what_is_allowed(place):
    place.patch.setenv("RAYPQ_STORAGE_ROW_GROUP_MIB", "1")
    X = np.random.default_rng(0).standard_normal((50_000, 16)).astype(np.float32)
    table = pa.table({"id": np.arange(50_000), "feature": arrays.fixed_list(X)})
    pq.write_table(table, place.test / "part-0.parquet", use_dictionary=False)
    return place.encode()


# ---- damage --------------------------------------------------------------------------------


def flip(path: Path, place: float = 0.3) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 4
    path.write_bytes(content)


@case(1, "expected readable Parquet pages", "part-0")
def a_flipped_bit_in_a_code_page(place):
    flip(code_file(place), 0.1)
    return place.classify()


@case(1, "part-0.parquet", "expected readable Parquet pages", "CRC checksum")
def a_flipped_bit_in_a_feature_page_with_checksums(place):
    table = pq.read_table(place.test / "part-0.parquet")
    pq.write_table(
        table, place.test / "part-0.parquet", write_page_checksum=True, compression="none",
        use_dictionary=False,
    )  # fmt: skip
    flip(place.test / "part-0.parquet", 0.4)
    return place.encode()


@case(1, "part-0", "sha256")
def a_code_file_with_other_content_of_the_same_size(place):
    path = code_file(place)
    content = path.read_bytes()
    path.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    return ["snapshots", "verify", place("codes"), "--sha256"]


@case(1, "/data/test--part-0-", "bytes, found")
def a_code_file_that_grew(place):
    path = code_file(place)
    path.write_bytes(path.read_bytes() + b"more")
    return ["snapshots", "verify", place("codes")]


@case(1, "part-9.parquet", "expected a link that leads to a file", "nowhere.parquet")
def a_link_to_nothing(place):
    (place.test / "part-9.parquet").symlink_to(place("nowhere.parquet"))
    return place.encode()


@case(1, "part-0.parquet, row group 0, column 'feature", "sizes that fit a file of", "stored")
def the_footer_of_another_file(place):
    one, two = place.test / "part-0.parquet", place.train / "part-0.parquet"
    footer = int.from_bytes(two.read_bytes()[-8:-4], "little") + 8
    one.write_bytes(b"PAR1" + two.read_bytes()[-footer:])
    return place.encode()


@case(1, "a number as raypq.M", "'many'")
def a_code_file_whose_notes_are_no_numbers(place):
    note(code_file(place), M=b"many")
    return place.classify()


@case(1, "a code file of format 1", "found 2")
def a_code_file_of_a_future_format(place):
    note(code_file(place), format=b"2")
    return place.classify()


@case(1, "classes and scores in each row", "row 0 and on")
def predictions_of_uneven_length(place):
    place.run(*place.encode())
    place.run(*place.classify())
    path = sorted(Path(place("predictions"), "data").iterdir())[0]
    table = pq.read_table(path)
    lists = table.column("class_id").to_pylist()
    lists[5] = lists[5][:3]
    place_of = table.column_names.index("class_id")
    table = table.set_column(place_of, "class_id", pa.array(lists))
    pq.write_table(table, path)
    note(path)
    sorted(Path(place("predictions"), "data").iterdir())[1].unlink()  # so that all are counted
    return place.classify()


# ---- manifests and models edited by hand ---------------------------------------------------


@case(1, "snapshots/00000000000000000001.json", "key 'format': 7, written by a newer raypq")
def a_snapshot_of_a_future_format(place):
    manifest(place, format=7, invented="tomorrow")
    return place.classify()


@case(1, "model.json", "expected format 1, found 9")
def a_model_of_a_future_format(place):
    place.model = shutil.copytree(place.model, place("copy"))
    file = Path(place.model) / "model.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 9}))
    return place.encode()


@case(1, "snapshots/00000000000000000001.json", "expected version 1, found version 5")
def a_snapshot_that_says_another_version(place):
    manifest(place, version=5)
    return place.classify()


@case(1, "snapshots/00000000000000000001.json", "key 'note'", "written by a newer raypq")
def a_snapshot_with_a_key_of_its_own(place):
    manifest(place, note="by hand")
    return place.classify()


@case(1, "snapshots/00000000000000000001.json", "expected each shard once", "part-0-", "more than")
def a_snapshot_with_a_shard_twice(place):
    with edited(manifest(place)) as shards:
        shards.append(shards[0])
    return place.classify()


@case(1, "paths inside the store", "/etc/passwd")
def a_snapshot_with_an_absolute_path(place):
    with edited(manifest(place)) as shards:
        shards[1]["path"] = "/etc/passwd"
    return place.classify()


@case(1, "paths inside the store", "link/x.parquet, which is in")
def a_snapshot_that_leaves_through_a_link(place):
    with edited(manifest(place)) as shards:
        Path(place("codes"), "link").symlink_to(place.train)
        shards[1]["path"] = "link/x.parquet"
    return place.classify()


@case(1, "/data/test--part-0-", "bytes, found")
def a_snapshot_with_another_size(place):
    with edited(manifest(place)) as shards:
        shards[0]["bytes"] += 1
    return ["snapshots", "verify", place("codes")]


@case(1, "snapshots/00000000000000000001.json", "expected a snapshot of format 1")
def a_snapshot_cut_short(place):
    file = manifest(place)
    file.write_bytes(file.read_bytes()[:200])
    return place.classify()


@case(1, "copy: expected a raypq model", "found ")
def a_model_whose_tensors_are_cut_short(place):
    place.model = shutil.copytree(place.model, place("copy"))
    file = Path(place.model) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    return place.encode()


# ---- ids and schemas -----------------------------------------------------------------------


def double(place: Place) -> None:
    """An id twice in part-0, and one of part-0 again in part-1."""
    ids = pq.read_table(place.test / "part-0.parquet").column("id").to_pylist()
    ids[7] = ids[3]
    place.set("test/part-0.parquet", "id", pa.array(ids))
    other = pq.read_table(place.test / "part-1.parquet").column("id").to_pylist()
    other[9] = ids[1]
    place.set("test/part-1.parquet", "id", pa.array(other))


@case(1, "expected every id once", "2 row(s) that repeat an earlier id",
      "'test-0-1' in", "part-0.parquet, row 1 and in", "part-1.parquet, row 9",
      "'test-0-3' in", "part-0.parquet, row 3 and in", "part-0.parquet, row 7")  # fmt: skip
def duplicate_ids_within_and_across_shards(place):
    double(place)
    return place.encode("--duplicate-ids", "refuse")


@case(1, "part-1.parquet", "column 'id'", "strings or integers", "double")
def ids_that_are_floats_in_one_shard(place):
    place.set("test/part-1.parquet", "id", pa.array(np.arange(60) / 7))
    return place.encode()


@case(1, "part-1.parquet", "column 'feature', row 7", "2²⁴", "cast the values to float32")
def features_that_are_integers_beyond_float32_in_one_shard(place):
    X = place.vectors("test/part-1.parquet").astype(np.int32)
    X[7, 3] = 2**24 + 1
    place.set("test/part-1.parquet", "feature", arrays.fixed_list(X))
    return place.encode()


@case(1, "part-1.parquet", "column 'feature'", "float16, float32 or float64", "decimal")
def features_that_are_decimals_in_one_shard(place):
    X = place.vectors("test/part-1.parquet").astype(np.int32)
    rows = pa.array(X.tolist(), pa.list_(pa.decimal128(12, 2)))
    place.set("test/part-1.parquet", "feature", rows)
    return place.encode()


@case(1, "part-1.parquet", "column 'label'", "strings or integers", "float")
def labels_of_another_type_in_one_shard(place):
    place.set("test/part-1.parquet", "label", pa.array(np.ones(60, np.float32)))
    return place.encode()


@case(1, "part-1.parquet", "one column 'feature'", "2 of that name")
def two_columns_of_one_name(place):
    table = pq.read_table(place.test / "part-1.parquet")
    names = [*table.column_names[:2], "feature"]
    pq.write_table(table.rename_columns(names), place.test / "part-1.parquet")
    return place.encode()


@case(1, "part-0.parquet", "row 4", "finite values", "NaN or Inf")
def a_double_that_no_float_holds(place):
    X = place.vectors("test/part-0.parquet").astype(np.float64)
    X[4, 2] = 1e300
    place.set("test/part-0.parquet", "feature", arrays.fixed_list(X))
    return place.encode()


@case(1, "part-0.parquet", "row 6", "no nulls", "a null value")
def a_null_inside_a_vector(place):
    rows: list[Any] = place.vectors("test/part-0.parquet").tolist()
    rows[6][2] = None
    place.set("test/part-0.parquet", "feature", pa.array(rows, pa.list_(pa.float32(), 16)))
    return place.encode()


@case(1, "without credentials", "***@bucket", "credentials in it")
def a_uri_that_holds_a_password(place):
    return [*place.encode(), "--features", "s3://someone:very-secret@bucket/features"]


@case(2, "RAYPQ_STORAGE_", "'attempts'", "found 'many'")
def a_storage_setting_that_is_no_number(place):
    place.patch.setenv("RAYPQ_STORAGE_ATTEMPTS", "many")
    return place.encode()


@pytest.mark.parametrize(("broken", "exit_code", "says"), TABLE.rows)
def test_hostile_input_is_named(place, broken, exit_code, says):
    check(place, broken, exit_code, says)


# ---- what is well in spite of its looks ----------------------------------------------------


def test_duplicate_ids_are_reported_and_nothing_is_dropped(place):
    double(place)
    result = place.run(*place.encode())
    assert result.stderr.count("duplicate ids: 2 row(s)") == 1
    told = json.loads(result.stdout)
    assert told["images"] == 120
    assert told["duplicate_ids"]["rows"] == 2
    assert snapshot.read(place("codes")).summary["duplicate_ids"]["rows"] == 2
    assert "duplicate ids" not in place.run(*place.encode("--precision", "bf16", "--duplicate-ids",
                                                      "ignore")).stderr  # fmt: skip


def test_refused_duplicates_cost_no_work_twice(place):
    double(place)
    assert raypq(*place.encode("--duplicate-ids", "refuse")).exit_code == 1
    assert snapshot.versions(place("codes")) == []
    made = set(Path(place("codes"), "data").iterdir())
    place.run(*place.encode())
    assert set(Path(place("codes"), "data").iterdir()) == made


def test_the_order_of_columns_does_not_matter(place):
    place.run(*place.encode())
    before = snapshot.read(place("codes"))
    for part in ("part-0", "part-1"):
        place.change(f"test/{part}.parquet", lambda table: table.select([2, 1, 0]))
    place.run(*place.encode())
    after = snapshot.read(place("codes"))
    assert after.version == 2
    assert [one.sha256 for one in after.shards] == [one.sha256 for one in before.shards]


def test_a_folder_that_is_named_like_a_shard_is_looked_into(place):
    folder = place.test / "part-2.parquet"
    folder.mkdir()
    shutil.copy(place.test / "part-0.parquet", folder / "inside.parquet")
    told = json.loads(place.run(*place.encode()).stdout)
    assert (told["shards"], told["images"]) == (3, 180)


@pytest.mark.parametrize("days", [30, -30])
def test_clocks_that_differ(place, monkeypatch, days):
    """Ages are taken by the clock that dates the files: nothing young is swept."""
    place.run(*place.encode())
    store = Path(place("codes"))
    for name, age in (("young", 0), ("old", 8)):
        (store / "data" / f"{name}.0.parquet").write_bytes(b"x")
        when = time.time() - age * 86_400
        os.utime(store / "data" / f"{name}.0.parquet", (when, when))
    skewed = time.time() + days * 86_400
    monkeypatch.setattr(time, "time", lambda: skewed)
    result = place.run("snapshots", "gc", str(store), "--delete")
    assert f"the clock here is 720.0 hours {'ahead of' if days > 0 else 'behind'}" in result.stderr
    assert json.loads(result.stdout)["removed"]["files"] == 1
    assert (store / "data" / "young.0.parquet").exists()
    assert not (store / "data" / "old.0.parquet").exists()
    assert not list((store / "journal").glob(".clock*"))
    place.run(*place.classify())


@pytest.mark.slow
def test_a_row_group_of_a_gigabyte_is_read_in_bounded_memory(tmp_path):
    """1 GB of honest float32 in one row group: streamed, not loaded."""
    from raypq.config import Columns
    from raypq.data.features import read_batches
    from raypq.data.storage import list_shards

    rng, width, rows = np.random.default_rng(0), 512, 500_000
    path = tmp_path / "large.parquet"
    X = rng.standard_normal((rows, width), np.float32)
    table = pa.table({"id": np.arange(rows), "feature": arrays.fixed_list(X)})
    del X
    pq.write_table(table, path, row_group_size=rows, use_dictionary=False, compression="none")
    del table
    assert pq.read_metadata(path).row_group(0).total_byte_size > 1_000_000_000
    pa.default_memory_pool().release_unused()
    before, most = psutil.Process().memory_info().rss, 0
    found = 0
    for batch in read_batches(list_shards([str(path)])[0], Columns(), width=width):
        found += len(batch)
        most = max(most, psutil.Process().memory_info().rss - before)
    assert found == rows
    assert most < 256 << 20, f"{most >> 20} MiB above the start"


def test_a_footer_that_lies_about_its_rows(write):
    """The number of rows stands in the footer of the file, and in that of each row group."""
    uri = write("x.parquet", row_group=2, id=np.arange(4), feature=np.ones((4, 2), np.float32))
    content = Path(uri).read_bytes()
    length = int.from_bytes(content[-8:-4], "little")
    at = content.index(b"\x16\x08\x19", len(content) - 8 - length)  # i64 4, then a list
    Path(uri).write_bytes(content[: at + 1] + b"\x12" + content[at + 2 :])
    with (
        pytest.raises(InputError, match="expected 9 rows, as its footer says, found 4 in all"),
        open_parquet(uri),
    ):
        pass


def test_there_are_forty_and_more():
    import test_bad_input

    assert len(TABLE.rows) + len(test_bad_input.TABLE.rows) >= 40
