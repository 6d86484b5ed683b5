"""What a file may do to the process that opens it: encrypted columns, damage, exotic layouts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tinystore import encrypted

from raypq import api
from raypq.config import ClusterSettings, EncodeJob, TrainJob
from raypq.data import arrays
from raypq.data.storage import open_parquet, stream
from raypq.data.storage.footer import FooterError, parse
from raypq.errors import InputError, JobError

N = 60
X = np.random.default_rng(0).standard_normal((N, 4)).astype(np.float32)
TABLE = pa.table(
    {
        "id": [f"i{row:02d}" for row in range(N)],
        "feature": arrays.fixed_list(X),
        "secret": [f"s{row}" for row in range(N)],
    }
)


def rows(path: Path, *columns: str) -> list[Any]:
    with open_parquet(str(path)) as file:
        batches = list(stream(file, 10, list(columns) or None))
    return [row for batch in batches for row in batch.to_pylist()]


def test_a_column_that_nobody_asks_for_may_be_encrypted(tmp_path: Path) -> None:
    path = encrypted(tmp_path / "x.parquet", TABLE, "secret")
    assert rows(path, "id", "feature") == TABLE.select(["id", "feature"]).to_pylist()


@pytest.mark.parametrize("column", ["feature.list.element", "id"])
def test_a_wanted_column_that_is_encrypted_is_named(tmp_path: Path, column: str) -> None:
    path = encrypted(tmp_path / "x.parquet", TABLE, column)
    with pytest.raises(InputError, match=rf"x\.parquet.*not encrypted.*found encrypted {column}"):
        rows(path, "id", "feature")


def test_a_file_that_is_encrypted_as_a_whole_is_named(tmp_path: Path) -> None:
    path = encrypted(tmp_path / "x.parquet", TABLE, "secret", plain_footer=False)
    with pytest.raises(InputError, match=r"x\.parquet.*found an encrypted footer"):
        rows(path, "id")


def test_a_whole_job_outlives_encrypted_files(tmp_path: Path) -> None:
    here = ClusterSettings(cluster="none", workers=1)
    features = tmp_path / "f"
    encrypted(features / "a.parquet", TABLE, "secret")
    pq.write_table(TABLE, features / "b.parquet")
    job = TrainJob(
        method="pq", features=[str(features)], output=str(tmp_path / "m"), where=here,
        settings={"M": 2, "K": 16, "iterations": 1},
    )  # fmt: skip
    api.train(job)
    bad = encrypted(features / "c.parquet", TABLE, "feature.list.element")
    encode = EncodeJob(model=job.output, features=[str(features)], output=str(tmp_path / "c"),
                       where=here, duplicate_ids="ignore")  # fmt: skip
    with pytest.raises(JobError, match=r"c\.parquet.*not encrypted"):
        api.encode(encode)
    made = api.encode(encode.model_copy(update={"on_bad_shard": "quarantine"}))
    assert made.rows == 2 * N
    assert [item.uri for item in made.quarantined] == [str(bad)]


# ---- damage --------------------------------------------------------------------------------


def outcome(path: Path, true: pa.Table) -> str:
    """What comes of reading a damaged file."""
    try:
        with open_parquet(str(path)) as file:
            schema = file.schema_arrow
            batches = list(stream(file, 10))
        found = pa.Table.from_batches(batches, schema)
    except InputError as error:
        return "error" if str(path) in str(error) else f"an error that names no file: {error}"
    if found.schema != true.schema or found.schema.metadata != true.schema.metadata:
        return "another schema"  # a reader looks for columns by name and type
    return "unharmed" if found.equals(true) else "OTHER VALUES"


LAYOUTS: dict[str, dict[str, Any]] = {
    "plain": {"compression": "none", "use_dictionary": False},
    "dictionary": {"compression": "zstd", "row_group_size": 25},
    "indexed": {"compression": "snappy", "write_page_index": True, "data_page_version": "2.0"},
}


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_damage_is_noticed_or_does_no_harm(tmp_path: Path, layout: str) -> None:
    """A byte of a page or of the footer is another one: never the same columns with other rows."""
    path = tmp_path / "x.parquet"
    pq.write_table(TABLE, path, write_page_checksum=True, **LAYOUTS[layout])
    good = path.read_bytes()
    assert outcome(path, TABLE) == "unharmed"
    pages = len(good) - 8 - int.from_bytes(good[-8:-4], "little")
    rng = np.random.default_rng(1)
    told = []
    for at in range(4, len(good), 17):
        for value in {good[at] ^ 1, good[at] ^ 2, int(rng.integers(256))} - {good[at]}:
            path.write_bytes(good[:at] + bytes([value]) + good[at + 1 :])
            told.append((at < pages, outcome(path, TABLE)))
    assert {what for _, what in told} <= {"error", "unharmed", "another schema"}
    in_pages = [what for page, what in told if page]
    assert in_pages.count("error") > 0.9 * len(in_pages), "headers apart, all of a page is summed"


@pytest.mark.parametrize("kind", [1, 2])
def test_a_page_whose_header_says_that_it_is_none_is_missed(tmp_path: Path, kind: int) -> None:
    """Arrow passes over pages that hold no data: 0 rows, and no error."""
    path = tmp_path / "x.parquet"
    pq.write_table(TABLE, path, write_page_checksum=True, **LAYOUTS["plain"])
    good = path.read_bytes()
    assert good[4:6] == b"\x15\x00", "the type of the first page"
    path.write_bytes(good[:5] + bytes([2 * kind]) + good[6:])
    with pytest.raises(InputError, match=r"x\.parquet"):
        rows(path)
    with open_parquet(str(path)) as file, pytest.raises(InputError, match=r"x\.parquet"):
        file.read(columns=["id"])


_FUZZ = """
import random, sys
from raypq.data.storage import open_parquet, stream
from raypq.errors import InputError
path, out, first, n = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
good = open(path, "rb").read()
footer = len(good) - 8 - int.from_bytes(good[-8:-4], "little")
for seed in range(first, first + n):
    dice, bad = random.Random(seed), bytearray(good)
    low = footer if seed % 4 else 4
    for _ in range(dice.choice([1, 1, 2, 3, 8])):
        at = dice.randrange(low, len(good) - 8)
        bad[at] = dice.choice([bad[at] ^ 1 << dice.randrange(8), 0, 0x15, 0x19, 0x1C, 0x5C, 255,
                               dice.randrange(256), bad[dice.randrange(low, len(good) - 8)]])
    open(out, "wb").write(bad)
    print(seed, flush=True)
    try:
        with open_parquet(out) as file:
            file.schema_arrow.names
            list(stream(file, 16, ["id", "feature"]))
    except InputError:
        pass
print("survived")
"""


@pytest.mark.parametrize("source", ["plain", "dictionary", "secret", "feature.list.element"])
def test_no_damage_ends_the_process(tmp_path: Path, source: str) -> None:
    """Arrow's C++ ends the process where it throws and no Python error is made of that."""
    path = tmp_path / "x.parquet"
    if source in LAYOUTS:
        pq.write_table(TABLE, path, write_page_checksum=True, **LAYOUTS[source])
    else:
        encrypted(path, TABLE, source)
    done = subprocess.run(
        [sys.executable, "-c", _FUZZ, str(path), str(tmp_path / "bad.parquet"), "0", "300"],
        capture_output=True, text=True,
    )  # fmt: skip
    last = done.stdout.splitlines()[-1:]
    assert last == ["survived"], f"seed {last}, exit {done.returncode}: {done.stderr[-500:]}"


# ---- layouts -------------------------------------------------------------------------------

EXOTIC: dict[str, pa.Table] = {
    "no rows": TABLE.schema.empty_table(),
    "no columns": pa.table({}),
    "nested": pa.table({"a": [[[{"b": {"c": [row]}}]] for row in range(9)],
                        "m": pa.array([[("k", row)] for row in range(9)],
                                      pa.map_(pa.string(), pa.int64()))}),
    "names": pa.table({"a.b": [1], "\u00e9 \u56fe": [2], "": [3], "x" * 3000: [4]}),
    "nulls": pa.table({"n": pa.nulls(5), "s": pa.array([None] * 5, pa.string())}),
    "dictionary": pa.table({"d": pa.array(["x", "y"] * 5).dictionary_encode()}),
    "numbers": pa.table({"t": pa.array([1], pa.timestamp("ns")), "h": np.zeros(1, np.float16),
                         "d": pa.array([1], pa.decimal128(38, 3)), "b": [True],
                         "f": pa.array([b"x" * 16], pa.binary(16))}),
    "tensor": pa.table({"t": pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.float32(), [2, 2]), arrays.fixed_list(X))}),
    "wide": pa.table({f"c{column}": [1.0] for column in range(300)}),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(EXOTIC))
@pytest.mark.parametrize("options", [{}, {"row_group_size": 1, "write_page_index": True}], ids=str)
def test_footers_say_what_arrow_finds_in_them(
    tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(EXOTIC[name], path, **options)
    with open_parquet(str(path)) as file:
        assert file.read().equals(pq.read_table(path))
        meta, footer = file.metadata, file.footer
    assert (footer.rows, len(footer.groups)) == (meta.num_rows, meta.num_row_groups)
    for index, (count, chunks) in enumerate(footer.groups):
        group = meta.row_group(index)
        assert count == group.num_rows
        for number, chunk in enumerate(chunks):
            column = group.column(number)
            assert (chunk.path, chunk.stored, chunk.plain, chunk.values) == (
                column.path_in_schema, column.total_compressed_size,
                column.total_uncompressed_size, column.num_values,
            )  # fmt: skip


def test_row_groups_without_rows_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    with pq.ParquetWriter(path, TABLE.schema) as writer:
        for table in (TABLE.schema.empty_table(), TABLE, TABLE.schema.empty_table()):
            writer.write_table(table)
    assert rows(path) == TABLE.to_pylist()


def test_text_that_is_no_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    words = pa.array([b"ok", b"\xff\xfe"], pa.binary()).cast(pa.string(), safe=False)
    pq.write_table(pa.table({"id": words}), path)
    with pytest.raises(InputError, match=r"x\.parquet.*UTF8"):
        rows(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "too early"),
        (b"\x00", "without a number of rows"),
        (b"\x15\x04\x19\xfc\xff\xff\xff\xff\x07", "a list of"),
        (b"\x18\xff\xff\xff\xff\x07", "a text of"),
        (b"\x16" + b"\xff" * 11, "64 bits"),
        (b"\x1c" * 60, "too many nested structs"),
        (b"\x1e", "unknown type"),
        (b"\x15\x04\x19\x1c\x00\x16\x02\x19\x1c\x00\x00", "row group 0 with -1 rows"),
        (b"\x15\x04\x19\x1c\x00\x16\x02\x19\x1c\x19\x1c\x00\x00\x00", "a column without metadata"),
    ],
)
def test_footers_that_make_no_sense(content: bytes, said: str) -> None:
    with pytest.raises(FooterError, match=said):
        parse(content)


def test_a_footer_that_is_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    with path.open("wb") as file:  # a hole: it takes no room on the disk
        file.write(b"PAR1")
        file.seek(300 << 20)
        file.write((299 << 20).to_bytes(4, "little") + b"PAR1")
    with pytest.raises(InputError, match="a footer of at most 256 MiB, found 299 MiB"):
        rows(path)
