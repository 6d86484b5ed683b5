"""Codes: two to a byte where K ≤ 16, written and read back, and files that are no codes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypq.data import codes
from raypq.data.codes import CodeFile, bytes_per_code, pack, unpack
from raypq.data.storage import Shard, join, list_shards
from raypq.data.store import shard_writer
from raypq.errors import InputError

SHARD = Shard(index=0, uri="/in/part-0.parquet", stem="part-0", size=1, modified="now")


@given(
    M=st.integers(1, 33), K=st.sampled_from([1, 2, 15, 16, 17, 255, 256]), n=st.integers(0, 20),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_unpack_is_the_inverse_of_pack(M, K, n, seed):
    B = np.random.default_rng(seed).integers(0, K, (n, M)).astype(np.uint8)
    stored = pack(B, K)
    assert stored.dtype == np.uint8
    assert stored.shape == (n, bytes_per_code(M, K))
    assert bytes_per_code(M, K) == (-(-M // 2) if K <= 16 else M)
    np.testing.assert_array_equal(unpack(stored, M, K), B)


def test_the_even_part_takes_the_low_half():
    np.testing.assert_array_equal(pack(np.array([[1, 2, 3]], np.uint8), 16), [[0x21, 0x03]])


def write_codes(
    store: str, B: np.ndarray, K: int, *, ids: pa.Array, labels: pa.Array | None, step: int = 7
) -> shard_writer.Receipt:
    schema = codes.schema(
        fingerprint="f" * 64, M=B.shape[1], K=K, id_type=ids.type, label=labels is not None
    )
    stored = pack(B, K)
    batches = (
        codes.record_batch(
            schema,
            ids=ids[low : low + step],
            stored=stored[low : low + step],
            labels=None if labels is None else labels[low : low + step],
        )
        for low in range(0, len(B), step)
    )
    return shard_writer.write_shard(
        store,
        SHARD,
        model="f" * 64,
        work="w",
        schema=schema,
        batches=batches,
        options=codes.WRITE_OPTIONS,
    )


@pytest.mark.parametrize("K", [16, 256])
@pytest.mark.parametrize("M", [4, 5])
@pytest.mark.parametrize("n", [0, 1, 50])
@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("kind", [pa.string(), pa.int64()])
def test_round_trip(tmp_path, M, K, n, labelled, kind):
    B = np.random.default_rng(0).integers(0, K, (n, M)).astype(np.uint8)
    ids = pa.array(range(n), pa.int64()).cast(kind)
    labels = pa.array([None if i % 3 == 0 else f"c{i % 5}" for i in range(n)], pa.string())
    receipt = write_codes(str(tmp_path), B, K, ids=ids, labels=labels if labelled else None)
    uri = join(str(tmp_path), receipt.path)
    file = CodeFile.open(uri)
    assert (file.rows, file.M, file.K, file.fingerprint) == (n, M, K, "f" * 64)
    assert (file.id_type, file.label) == (kind, labelled)
    batches = [batch for batch in file.batches(13) if len(batch.B)]
    found = np.concatenate([batch.B for batch in batches]) if n else np.empty((0, M))
    np.testing.assert_array_equal(found, B)
    assert [key for batch in batches for key in batch.ids.to_pylist()] == ids.to_pylist()
    if labelled:
        assert [x for batch in batches for x in batch.labels.to_pylist()] == labels.to_pylist()


def test_the_receipt_says_what_was_written(tmp_path):
    B = np.zeros((20, 4), np.uint8)
    ids = pa.array([str(i) for i in range(20)])
    receipt = write_codes(str(tmp_path), B, 256, ids=ids, labels=None)
    path = tmp_path / receipt.path
    content = path.read_bytes()
    import hashlib

    assert receipt.rows == 20
    assert receipt.bytes == len(content)
    assert receipt.sha256 == hashlib.sha256(content).hexdigest()
    assert path.name.startswith("part-0.")
    again = write_codes(str(tmp_path), B, 256, ids=ids, labels=None)
    assert again.path != receipt.path, "a second attempt never writes over the first"
    assert len(list_shards([str(tmp_path)])) == 2


def test_codes_carry_page_checksums(tmp_path):
    B = np.random.default_rng(0).integers(0, 256, (2000, 8)).astype(np.uint8)
    ids = pa.array([str(i) for i in range(2000)])
    receipt = write_codes(str(tmp_path), B, 256, ids=ids, labels=None, step=500)
    path = tmp_path / receipt.path
    content = bytearray(path.read_bytes())
    at = content.find(B[1000].tobytes())
    assert at > 0, "codes are stored as they are"
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="readable Parquet pages"):
        list(CodeFile.open(str(path)).batches(512))


def test_a_code_of_K_or_more_names_the_row(tmp_path):
    B = np.zeros((30, 4), np.uint8)
    B[17, 2] = 9
    schema = codes.schema(fingerprint="f", M=4, K=16, id_type=pa.int64(), label=False)
    stored = pack(B, 16)
    table = pa.Table.from_batches(
        [codes.record_batch(schema, ids=pa.array(range(30)), stored=stored, labels=None)]
    )
    metadata = {**table.schema.metadata, b"raypq.K": b"8"}
    path = str(tmp_path / "x.parquet")
    pq.write_table(table.replace_schema_metadata(metadata), path)
    with pytest.raises(InputError, match="row 17: expected codes below K = 8, found 9"):
        list(CodeFile.open(path).batches(10))


@pytest.mark.parametrize(
    ("metadata", "names", "says"),
    [
        ({}, ["id", "code"], "without raypq metadata"),
        ({"raypq.format": "2"}, ["id", "code"], "format 1, found 2"),
        ({"raypq.format": "1"}, ["id", "code"], r"without raypq\.K"),
        (None, ["id", "other"], "without column 'code'"),
        (None, ["other", "code"], "without column 'id'"),
    ],
)
def test_files_that_are_no_codes(tmp_path, metadata, names, says):
    schema = codes.schema(fingerprint="f", M=4, K=16, id_type=pa.int64(), label=False)
    columns = [pa.array([1]), pa.array([b"ab"], pa.binary(2))]
    table = pa.Table.from_arrays(columns, names)
    given_metadata = schema.metadata if metadata is None else metadata
    path = str(tmp_path / "x.parquet")
    pq.write_table(table.replace_schema_metadata(given_metadata), path)
    with pytest.raises(InputError, match=says):
        CodeFile.open(path)


def test_codes_of_another_width(tmp_path):
    schema = codes.schema(fingerprint="f", M=4, K=16, id_type=pa.int64(), label=False)
    table = pa.table({"id": [1], "code": pa.array([b"abc"], pa.binary(3))})
    path = str(tmp_path / "x.parquet")
    pq.write_table(table.replace_schema_metadata(schema.metadata), path)
    with pytest.raises(
        InputError,
        match=r"column .code.: expected .*\[2\], found .*\[3\]",
    ):
        CodeFile.open(path)


def test_a_failed_write_raises_and_no_receipt_is_given(tmp_path):
    schema = codes.schema(fingerprint="f", M=1, K=256, id_type=pa.int64(), label=False)

    def batches():
        stored = np.zeros((1, 1), np.uint8)
        yield codes.record_batch(schema, ids=pa.array([1]), stored=stored, labels=None)
        raise InputError("x", expected="a", found="b")

    with pytest.raises(InputError):
        shard_writer.write_shard(
            str(tmp_path), SHARD, model="f", work="w", schema=schema, batches=batches(),
            options=codes.WRITE_OPTIONS,
        )  # fmt: skip
    assert not Path(tmp_path, "snapshots").exists()


CODES = pa.array([b"ab", b"cd"], pa.binary(2))


def code_file(path: Path, **columns: pa.Array) -> str:
    """A file with a code file's metadata, M = 4 and K = 16, and these columns."""
    schema = codes.schema(fingerprint="f", M=4, K=16, id_type=pa.int64(), label=False)
    table = pa.table({"id": [1, 2], "code": CODES, **columns})
    pq.write_table(table.replace_schema_metadata(schema.metadata), path)
    return str(path)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("id", pa.array([[1], [2]])),
        ("id", pa.array([1, 2], pa.int32())),
        ("id", pa.array([1, 2], pa.uint64())),
        ("id", pa.array([1.0, 2.0])),
        ("id", pa.nulls(2)),
        ("id", pa.array(["a", "b"], pa.large_string())),
        ("id", pa.array([b"a", b"b"])),
        ("code", pa.array([b"ab", b"cd"])),
        ("code", pa.array([1, 2])),
        ("code", pa.array([[1, 2], [3, 4]], pa.list_(pa.uint8()))),
        ("label", pa.array([1, 2])),
        ("label", pa.array([["a"], ["b"]])),
        ("label", pa.nulls(2)),
    ],
    ids=str,
)
def test_columns_of_other_types_are_named(tmp_path, column, values):
    path = code_file(tmp_path / "x.parquet", **{column: values})
    with pytest.raises(InputError, match=f"x.parquet, column '{column}': expected .*, found"):
        CodeFile.open(path)


@pytest.mark.parametrize("column", ["id", "code"])
@pytest.mark.parametrize("rows", [1, 2])
def test_a_null_is_no_code_and_no_id(tmp_path, column, rows):
    values = {"id": pa.array([7, None]), "code": pa.array([b"ab", None], pa.binary(2))}[column]
    file = CodeFile.open(code_file(tmp_path / "x.parquet", **{column: values}))
    with pytest.raises(InputError, match=f"x.parquet, row 1: expected .*'{column}', found null"):
        list(file.batches(rows))
    if column == "id":
        with pytest.raises(InputError, match=r"row 1: .*'id', found null"):
            list(file.ids(rows))


def test_a_label_may_be_null(tmp_path):
    labels = pa.array(["a", None])
    (batch,) = CodeFile.open(code_file(tmp_path / "x.parquet", label=labels)).batches(9)
    assert batch.labels.to_pylist() == ["a", None]
