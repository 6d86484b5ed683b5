"""Every layout of features gives the codes of the same rows as plain Parquet."""

from __future__ import annotations

import uuid
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raypq
from raypq.config import ClusterSettings, Columns, EncodeJob, TrainJob
from raypq.data import arrays
from raypq.data.codes import CodeFile
from raypq.data.store import snapshot
from raypq.errors import InputError, JobError, RaypqError

N, WIDTH = 1000, 24
ALONE = ClusterSettings(cluster="none", workers=1)
Write = Callable[[Path, np.ndarray, np.ndarray, np.ndarray], Columns]


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors that float16 and bfloat16 hold exactly, ids and labels."""
    rng = np.random.default_rng(3)
    X = rng.integers(-127, 128, (N, WIDTH)).astype(np.float32) / 32
    return X, np.arange(N) * 7 + 10**17, np.array([f"c{i % 5}" for i in range(N)])


@pytest.fixture(scope="module")
def plain(
    tmp_path_factory: pytest.TempPathFactory, rows: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> tuple[str, np.ndarray]:
    """A model, and the codes of plain Parquet."""
    root = tmp_path_factory.mktemp("plain")
    X, ids, labels = rows
    (root / "features").mkdir()
    pq.write_table(
        pa.table({"id": ids, "feature": arrays.fixed_list(X), "label": labels}),
        root / "features" / "part.parquet",
    )
    job = TrainJob(
        method="pq",
        features=[str(root / "features")],
        output=str(root / "model"),
        settings={"M": 8, "K": 16, "iterations": 2},
        where=ALONE,
    )
    raypq.train(job)
    encode(job.output, root / "features", root / "codes", Columns())
    return job.output, stored(root / "codes")[0]


def encode(model: str, features: Path | list[str], output: Path, columns: Columns) -> Any:
    given = features if isinstance(features, list) else [str(features)]
    return raypq.encode(
        EncodeJob(model=model, features=given, output=str(output), columns=columns, where=ALONE)
    )


def stored(store: Path) -> tuple[np.ndarray, list[Any], list[Any]]:
    """Codes, ids and labels of the latest version."""
    codes, ids, labels = [], [], []
    for receipt in snapshot.read(str(store)).shards:
        for batch in CodeFile.open(str(store / receipt.path)).batches(300):
            codes.append(batch.B)
            ids += batch.ids.to_pylist()
            labels += batch.labels.to_pylist() if batch.labels is not None else []
    return np.concatenate(codes), ids, labels


def npy(folder: Path, X: np.ndarray, ids: np.ndarray, labels: np.ndarray) -> Columns:
    np.save(folder / "a.npy", X)
    return Columns()


def npy_float16(folder: Path, X: np.ndarray, ids: np.ndarray, labels: np.ndarray) -> Columns:
    np.save(folder / "a.npy", X.astype(np.float16))
    return Columns()


def npy_big_endian(folder: Path, X: np.ndarray, ids: np.ndarray, labels: np.ndarray) -> Columns:
    np.save(folder / "a.npy", X.astype(">f8"))
    return Columns()


def described(folder: Path, X: np.ndarray, ids: np.ndarray, labels: np.ndarray) -> Columns:
    np.save(folder / "a.npy", X)
    pq.write_table(pa.table({"id": ids, "label": labels}), folder / "a.parquet", row_group_size=130)
    return Columns()


def clip_retrieval(folder: Path, X: np.ndarray, ids: np.ndarray, labels: np.ndarray) -> Columns:
    (folder / "img_emb").mkdir()
    (folder / "metadata").mkdir()
    for part, at in enumerate(np.array_split(np.arange(N), 3)):
        np.save(folder / "img_emb" / f"img_emb_{part}.npy", X[at].astype(np.float16))
        table = pa.table({"image_path": labels[at], "key": ids[at], "caption": labels[at]})
        pq.write_table(table, folder / "metadata" / f"metadata_{part}.parquet")
    return Columns(id="key", label="image_path")


def datacomp(folder: Path, X: np.ndarray, ids: np.ndarray, labels: np.ndarray) -> Columns:
    half = X.astype(np.float16)
    np.savez_compressed(folder / "0001.npz", b32_img=half[:, :8], l14_img=half, dedup=half[:, :4])
    table = pa.table({"uid": [f"{i:032x}" for i in ids], "text": labels})
    pq.write_table(table, folder / "0001.parquet")
    return Columns(id="uid", feature="l14_img", label="text")


def npz(folder: Path, X: np.ndarray, ids: np.ndarray, labels: np.ndarray) -> Columns:
    np.savez(folder / "a.npz", X=X, id=ids, label=labels)
    return Columns()


def nested(folder: Path, X: np.ndarray, ids: np.ndarray, labels: np.ndarray) -> Columns:
    vectors = pa.StructArray.from_arrays(
        [arrays.fixed_list(X), pa.array(labels)], names=["vector", "model"]
    )
    outer = pa.StructArray.from_arrays([vectors, pa.array(ids)], names=["clip", "key"])
    pq.write_table(pa.table({"a": outer, "label": labels}), folder / "a.parquet")
    return Columns(feature="a.clip.vector", id="a.key")


def hive(folder: Path, X: np.ndarray, ids: np.ndarray, labels: np.ndarray) -> Columns:
    """As Spark writes it: a folder for each label, checksums, a mark of success."""
    for at in range(5):
        place = folder / f"label=c{at}"
        place.mkdir()
        chosen = np.flatnonzero(labels == f"c{at}")
        table = pa.table({"id": ids[chosen], "feature": X[chosen].tolist()})
        pq.write_table(table, place / "part-00000-ab.c000.snappy.parquet")
        (place / ".part-00000-ab.c000.snappy.parquet.crc").write_bytes(b"crc")
    (folder / "_SUCCESS").touch()
    return Columns()


def without_ids(folder: Path, X: np.ndarray, ids: np.ndarray, labels: np.ndarray) -> Columns:
    pq.write_table(pa.table({"feature": arrays.fixed_list(X)}), folder / "a.parquet")
    return Columns()


def lance(folder: Path, X: np.ndarray, ids: np.ndarray, labels: np.ndarray) -> Columns:
    table = pa.table({"id": ids, "feature": arrays.fixed_list(X), "label": labels})
    package = pytest.importorskip("lance")
    package.write_dataset(table, str(folder / "a.lance"), max_rows_per_file=N)
    return Columns()


def lance_bfloat16(folder: Path, X: np.ndarray, ids: np.ndarray, labels: np.ndarray) -> Columns:
    package = pytest.importorskip("lance")
    from lance.arrow import BFloat16Type

    upper = (X.view(np.uint32) >> 16).astype("<u2").reshape(-1, 1).view(np.uint8)
    values = pa.ExtensionArray.from_storage(BFloat16Type(), arrays.fixed_binary(upper))
    vectors = pa.FixedSizeListArray.from_arrays(values, WIDTH)
    table = pa.table({"id": ids, "feature": vectors, "label": labels})
    package.write_dataset(table, str(folder / "a.lance"))
    return Columns()


def parquet_bfloat16(folder: Path, X: np.ndarray, ids: np.ndarray, labels: np.ndarray) -> Columns:
    """As a file of such a dataset is read where Lance's types are not registered."""
    upper = (X.view(np.uint32) >> 16).astype("<u2").view(np.uint8)
    note = {"ARROW:extension:name": "lance.bfloat16", "ARROW:extension:metadata": ""}
    kind = pa.list_(pa.field("item", pa.binary(2), metadata=note), WIDTH)
    vectors = pa.FixedSizeListArray.from_arrays(
        arrays.fixed_binary(upper.reshape(-1, 2)), type=kind
    )
    schema = pa.schema({"id": pa.int64(), "feature": kind, "label": pa.string()})
    table = pa.Table.from_arrays([pa.array(ids), vectors, pa.array(labels)], schema=schema)
    pq.write_table(table, folder / "a.parquet")
    return Columns()


def polars(folder: Path, X: np.ndarray, ids: np.ndarray, labels: np.ndarray) -> Columns:
    package = pytest.importorskip("polars")
    frame = package.DataFrame({"id": ids, "feature": X.tolist(), "label": labels})
    frame.write_parquet(folder / "a.parquet")
    return Columns()


def polars_arrays(folder: Path, X: np.ndarray, ids: np.ndarray, labels: np.ndarray) -> Columns:
    package = pytest.importorskip("polars")
    kinds = {"feature": package.Array(package.Float32, WIDTH), "label": package.Categorical}
    frame = package.DataFrame({"id": ids, "feature": X, "label": labels}, schema_overrides=kinds)
    frame.write_parquet(folder / "a.parquet")
    return Columns()


def duckdb(folder: Path, X: np.ndarray, ids: np.ndarray, labels: np.ndarray) -> Columns:
    package = pytest.importorskip("duckdb")
    rows = pa.table({"id": ids, "feature": X.astype(np.float64).tolist(), "label": labels})
    package.sql("SELECT * FROM rows").write_parquet(str(folder / "a.parquet"))
    assert rows.num_rows == N
    return Columns()


def duckdb_uuid(folder: Path, X: np.ndarray, ids: np.ndarray, labels: np.ndarray) -> Columns:
    package = pytest.importorskip("duckdb")
    rows = pa.table({"key": [f"{i:032x}" for i in ids], "v": X.tolist(), "label": labels})
    query = f"SELECT key::UUID AS key, v::FLOAT[{WIDTH}] AS v, label FROM rows"
    package.sql(query).write_parquet(str(folder / "a.parquet"))
    assert rows.num_rows == N
    return Columns(id="key", feature="v")


def huggingface(folder: Path, X: np.ndarray, ids: np.ndarray, labels: np.ndarray) -> Columns:
    package = pytest.importorskip("datasets")
    kinds = package.Features(
        {
            "id": package.Value("int64"),
            "feature": package.Sequence(package.Value("float32"), length=WIDTH),
            "label": package.ClassLabel(names=[f"c{i}" for i in range(5)]),
        }
    )
    rows = {"id": ids, "feature": X.tolist(), "label": labels.tolist()}
    package.Dataset.from_dict(rows, features=kinds).to_parquet(folder / "a.parquet")
    return Columns()


def huggingface_array(folder: Path, X: np.ndarray, ids: np.ndarray, labels: np.ndarray) -> Columns:
    package = pytest.importorskip("datasets")
    kinds = package.Features(
        {
            "id": package.Value("int32"),
            "feature": package.Array2D((4, WIDTH // 4), "float32"),
            "label": package.Value("large_string"),
        }
    )
    rows = {"id": np.arange(N), "feature": X.reshape(N, 4, -1), "label": labels.tolist()}
    package.Dataset.from_dict(rows, features=kinds).to_parquet(folder / "a.parquet")
    return Columns()


def binary_ids(folder: Path, X: np.ndarray, ids: np.ndarray, labels: np.ndarray) -> Columns:
    """Ids of 16 bytes in a dictionary, vectors in a column of another name."""
    raw = pa.array([int(i).to_bytes(16, "big") for i in ids], pa.binary(16))
    table = pa.table({"md5": raw.dictionary_encode(), "x": X.tolist(), "label": labels})
    pq.write_table(table, folder / "a.parquet")
    return Columns(id="md5", feature="x")


MADE = [npy, npy_float16, npy_big_endian, without_ids]
OTHERS = [
    lance,
    lance_bfloat16,
    parquet_bfloat16,
    polars,
    polars_arrays,
    duckdb,
    duckdb_uuid,
    huggingface,
    huggingface_array,
]
NAMED = [binary_ids, described, clip_retrieval, datacomp, npz, nested, hive, *OTHERS]


@pytest.mark.parametrize("layout", MADE + NAMED)
def test_the_codes_are_those_of_plain_parquet(
    tmp_path: Path, plain: tuple[str, np.ndarray], rows: Any, layout: Write
) -> None:
    model, expected = plain
    X, ids, labels = rows
    (tmp_path / "in").mkdir()
    columns = layout(tmp_path / "in", X, ids, labels)
    version = encode(model, tmp_path / "in", tmp_path / "codes", columns)
    B, found, classes = stored(tmp_path / "codes")
    order = np.arange(N)
    if layout is hive:
        order = np.argsort(labels, kind="stable")
    assert (expected[order] == B).all()
    if layout in MADE:
        (receipt,) = version.shards
        assert found == [f"{receipt.shard}:{row}" for row in range(N)]
        assert not classes
    else:
        named = {datacomp: [f"{i:032x}" for i in ids], huggingface_array: list(range(N))}
        named[binary_ids] = named[datacomp]
        named[duckdb_uuid] = [str(uuid.UUID(int=int(i))) for i in ids]
        known = named.get(layout, list(ids))
        assert found == [known[i] for i in order]
        if layout is huggingface:  # a ClassLabel is stored as a number
            classes = [f"c{number}" for number in classes]
        assert classes == [labels[i] for i in order]
    again = encode(model, tmp_path / "in", tmp_path / "codes", columns)
    assert again.version == version.version


def test_a_changed_description_is_a_changed_shard(
    tmp_path: Path, plain: tuple[str, np.ndarray], rows: Any
) -> None:
    X, ids, labels = rows
    (tmp_path / "in").mkdir()
    described(tmp_path / "in", X, ids, labels)
    first = encode(plain[0], tmp_path / "in", tmp_path / "codes", Columns())
    described(tmp_path / "in", X, ids + 1, labels)
    second = encode(plain[0], tmp_path / "in", tmp_path / "codes", Columns())
    assert second.version == first.version + 1
    assert stored(tmp_path / "codes")[1] == list(ids + 1)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ("short", ["a.npy", "bytes"]),
        ("rows", ["a.parquet", "999 rows", "1000 rows"]),
        ("fortran", ["a.npy", "Fortran"]),
        ("objects", ["a.npy", "unpickle"]),
        ("flat", ["a.npy", "[n, d]"]),
        ("text", ["a.npy", "float16, float32"]),
        ("no npy", ["a.npy", ".npy format"]),
        ("nan", ["a.npy", "row 17", "NaN"]),
        ("npz cut", ["a.npz", "complete"]),
        ("npz other", ["a.npz", "array 'feature'", "X, Y"]),
        ("two layouts", ["b.parquet", "a.npy", "one layout"]),
        ("one undescribed", ["b.npy", "a.parquet"]),
        ("both embeddings", ["img_emb", "text_emb"]),
    ],
)
def test_bad_arrays_are_named(
    tmp_path: Path, plain: tuple[str, np.ndarray], rows: Any, spoil: str, words: list[str]
) -> None:
    X, ids, labels = rows
    folder = tmp_path / "in"
    folder.mkdir()
    path = folder / "a.npy"
    np.save(path, X)
    if spoil == "short":
        path.write_bytes(path.read_bytes()[:-100])
    elif spoil == "rows":
        pq.write_table(pa.table({"id": ids[:-1]}), folder / "a.parquet")
    elif spoil == "fortran":
        np.save(path, np.asfortranarray(X))
    elif spoil == "objects":
        np.save(path, np.array([list(x) for x in X], dtype=object), allow_pickle=True)
    elif spoil == "flat":
        np.save(path, X.reshape(-1))
    elif spoil == "text":
        np.save(path, labels.reshape(-1, 1))
    elif spoil == "no npy":
        path.write_bytes(b"hello world " * 20)
    elif spoil == "nan":
        X = X.copy()
        X[17, 3] = np.nan
        np.save(path, X)
    elif spoil.startswith("npz"):
        path.unlink()
        path = folder / "a.npz"
        np.savez(path, X=X, Y=X)
        if spoil == "npz cut":
            path.write_bytes(path.read_bytes()[:-2000])
    elif spoil == "two layouts":
        pq.write_table(pa.table({"id": ids, "feature": X.tolist()}), folder / "b.parquet")
    elif spoil == "one undescribed":
        np.save(folder / "b.npy", X)
        pq.write_table(pa.table({"id": ids}), folder / "a.parquet")
    elif spoil == "both embeddings":
        path.unlink()
        for kind in ("img", "text"):
            (folder / f"{kind}_emb").mkdir()
            np.save(folder / f"{kind}_emb" / f"{kind}_emb_0.npy", X)
    with pytest.raises((RaypqError, JobError)) as error:
        encode(plain[0], folder, tmp_path / "codes", Columns())
    for word in words:
        assert word in str(error.value)


def test_made_ids_and_ids_of_a_column_do_not_mix(
    tmp_path: Path, plain: tuple[str, np.ndarray], rows: Any
) -> None:
    X, _, labels = rows
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "a.npy", X)
    model, codes = plain[0], tmp_path / "codes"
    encode(model, tmp_path / "in", codes, Columns())
    np.save(tmp_path / "in" / "b.npy", X)  # as before
    assert len(encode(model, tmp_path / "in", codes, Columns()).shards) == 2
    (tmp_path / "other").mkdir()
    named = pa.table({"id": labels, "feature": X.tolist()})
    pq.write_table(named, tmp_path / "other" / "a.parquet")
    pq.write_table(named.drop_columns(["id"]), tmp_path / "other" / "b.parquet")
    with pytest.raises(JobError, match=r"b\.parquet: expected a column 'id', as in .*a\.parquet"):
        encode(model, tmp_path / "other", tmp_path / "mixed", Columns())


ARCHIVES = {
    "float ids": ({"id": np.linspace(0, 1, N)}, ["column 'id'", "integers"]),
    "ids in a column": ({"id": np.zeros((N, 1), int)}, ["array 'id'", "one for each vector"]),
    "dates as ids": ({"id": np.zeros(N, "M8[s]")}, ["array 'id'", "integers, or text"]),
    "labels of one value": ({"label": np.array("x")}, ["array 'label'", "shape ()"]),
    "wide ids": ({"id": np.array(["x"] * N, "U5000")}, ["array 'id'", "4096 bytes"]),
    "ids of another length": ({"id": np.arange(N - 1)}, ["array 'id'", f"{N} values"]),
    "latin-1": ({"id": np.array([b"a"] * 7 + [b"\xe9"] * (N - 7))}, ["array 'id', row 7", "UTF-8"]),
    "objects as ids": ({"id": np.array([{}] * N, object)}, ["array 'id'", "unpickle"]),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_bad_columns_of_an_archive_are_named(
    tmp_path: Path, plain: tuple[str, np.ndarray], rows: Any, case: str
) -> None:
    columns, words = ARCHIVES[case]
    (tmp_path / "in").mkdir()
    np.savez(tmp_path / "in" / "a.npz", feature=rows[0], allow_pickle=True, **columns)
    with pytest.raises(JobError) as error:
        encode(plain[0], tmp_path / "in", tmp_path / "codes", Columns())
    for word in ["a.npz", *words]:
        assert word in str(error.value)


def test_arrays_that_no_column_names_are_not_read(
    tmp_path: Path, plain: tuple[str, np.ndarray], rows: Any
) -> None:
    (tmp_path / "in").mkdir()
    X, ids, _ = rows
    others = {"classes": np.arange(3), "note": np.array([{}], object), "id": ids}
    np.savez(tmp_path / "in" / "a.npz", feature=X, F=np.asfortranarray(X), **others)
    with zipfile.ZipFile(tmp_path / "in" / "a.npz", "a") as archive:
        archive.writestr("README.txt", "text")
    encode(plain[0], tmp_path / "in", tmp_path / "codes", Columns())
    assert stored(tmp_path / "codes")[1] == list(ids)


HEADERS = ["{[]:2}", "{1:2,'a':3}", "[" * 9000, "-" * 9000, "+".join(["1"] * 4000), "\0" * 50]
SHAPES = [(-3, 24), (-3, -4), (0, 99999999999999999999), (1 << 40, 1 << 40)]


@pytest.mark.parametrize("header", HEADERS + [
    f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}" for shape in SHAPES
])  # fmt: skip
@pytest.mark.parametrize("archive", [False, True])
def test_a_hostile_header_is_named(
    tmp_path: Path, plain: tuple[str, np.ndarray], header: str, archive: bool
) -> None:
    text = header.encode() + b"\n"
    content = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(96 * 24)
    (tmp_path / "in").mkdir()
    if archive:
        with zipfile.ZipFile(tmp_path / "in" / "a.npz", "w") as file:
            file.writestr("feature.npy", content)
    else:
        (tmp_path / "in" / "a.npy").write_bytes(content)
    with pytest.raises(JobError, match=r"a\.np[yz].*(expected|found)"):
        encode(plain[0], tmp_path / "in", tmp_path / "codes", Columns())


def test_an_archive_that_says_less_than_it_holds(
    tmp_path: Path, plain: tuple[str, np.ndarray], rows: Any
) -> None:
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.npz"
    np.savez(path, feature=rows[0])
    content = path.read_bytes()
    assert content.count(b"(1000, 24)") == 1
    path.write_bytes(content.replace(b"(1000, 24)", b"( 900, 24)"))
    with pytest.raises(JobError, match=r"array 'feature'.*bytes"):
        encode(plain[0], tmp_path / "in", tmp_path / "codes", Columns())
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    path.write_bytes(bytes(flipped))
    with pytest.raises(JobError, match=r"a\.npz.*CRC"):
        encode(plain[0], tmp_path / "in", tmp_path / "codes", Columns())


def test_two_members_of_one_name(tmp_path: Path, plain: tuple[str, np.ndarray], rows: Any) -> None:
    (tmp_path / "in").mkdir()
    np.savez(tmp_path / "in" / "a.npz", feature=rows[0])
    with (
        warnings.catch_warnings(action="ignore"),
        zipfile.ZipFile(tmp_path / "in" / "a.npz", "a") as archive,
    ):
        archive.writestr("feature.npy", archive.read("feature.npy"))
    with pytest.raises(JobError, match=r"one array 'feature', found 2"):
        encode(plain[0], tmp_path / "in", tmp_path / "codes", Columns())


def test_an_array_beside_a_complete_parquet_shard_is_refused(
    tmp_path: Path, plain: tuple[str, np.ndarray], rows: Any
) -> None:
    X, ids, _ = rows
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"id": ids, "feature": X.tolist()}), tmp_path / "in" / "a.parquet")
    encode(plain[0], tmp_path / "in", tmp_path / "codes", Columns())
    np.save(tmp_path / "in" / "a.npy", X[::-1])
    with pytest.raises(JobError, match=r"a\.parquet: expected no column 'feature'.*a\.npy"):
        encode(plain[0], tmp_path / "in", tmp_path / "codes", Columns())
    assert len(snapshot.versions(str(tmp_path / "codes"))) == 1


@pytest.mark.parametrize("first", ["made", "text"])
def test_a_store_keeps_made_ids_or_those_of_a_column(
    tmp_path: Path, plain: tuple[str, np.ndarray], rows: Any, first: str
) -> None:
    """Also where no shard of the last version is kept, and where ids look as if they were made."""
    X, _, labels = rows
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "a.parquet"
    text = [f"a-0123456789abcdef:{row}" for row in range(N)]
    named = pa.table({"id": text, "feature": X.tolist(), "label": labels})
    unnamed = named.drop_columns(["id"])
    pq.write_table(unnamed if first == "made" else named, path)
    encode(plain[0], tmp_path / "in", tmp_path / "codes", Columns())
    pq.write_table(named if first == "made" else unnamed, path)
    with pytest.raises(JobError, match=r"a\.parquet: expected (a|no) column 'id'"):
        encode(plain[0], tmp_path / "in", tmp_path / "codes", Columns())
    other = tmp_path / "in" / "b.parquet"
    path.rename(other)
    pq.write_table(unnamed if first == "made" else named, path)
    with pytest.raises(JobError, match=r"b\.parquet: expected (a|no) column 'id'"):
        encode(plain[0], tmp_path / "in", tmp_path / "codes", Columns())


def test_lance_beside_parquet_is_refused(
    tmp_path: Path, plain: tuple[str, np.ndarray], rows: Any
) -> None:
    X, ids, labels = rows
    (tmp_path / "in").mkdir()
    lance(tmp_path / "in", X, ids, labels)
    pq.write_table(pa.table({"id": ids, "feature": X.tolist()}), tmp_path / "in" / "b.parquet")
    with pytest.raises(InputError, match=r"one layout.*a\.lance and b\.parquet"):
        encode(plain[0], tmp_path / "in", tmp_path / "codes", Columns())


def test_an_emptied_lance_dataset_is_no_source(
    tmp_path: Path, plain: tuple[str, np.ndarray], rows: Any
) -> None:
    (tmp_path / "in").mkdir()
    lance(tmp_path / "in", *rows)
    package = pytest.importorskip("lance")
    package.dataset(str(tmp_path / "in" / "a.lance")).delete("true")
    with pytest.raises(InputError, match="without a fragment"):
        encode(plain[0], tmp_path / "in", tmp_path / "codes", Columns())


def test_a_renamed_column_of_a_lance_dataset_is_a_change(
    tmp_path: Path, plain: tuple[str, np.ndarray], rows: Any
) -> None:
    X, ids, _ = rows
    package = pytest.importorskip("lance")
    (tmp_path / "in").mkdir()
    place = str(tmp_path / "in" / "a.lance")
    columns = {"id": ids, "feature": arrays.fixed_list(X), "other": arrays.fixed_list(X[::-1])}
    package.write_dataset(pa.table(columns), place)
    encode(plain[0], tmp_path / "in", tmp_path / "codes", Columns())
    package.dataset(place).alter_columns({"path": "feature", "name": "first"})
    package.dataset(place).alter_columns({"path": "other", "name": "feature"})
    encode(plain[0], tmp_path / "in", tmp_path / "codes", Columns())
    assert (stored(tmp_path / "codes")[0] == plain[1][::-1]).all()


def test_labels_may_be_the_ids(tmp_path: Path, plain: tuple[str, np.ndarray], rows: Any) -> None:
    X, ids, _ = rows
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"id": ids, "feature": X.tolist()}), tmp_path / "in" / "a.parquet")
    encode(plain[0], tmp_path / "in", tmp_path / "codes", Columns(label="id"))
    assert stored(tmp_path / "codes")[2] == [str(i) for i in ids]
