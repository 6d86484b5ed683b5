"""Class tables: the splits they define, and what they must not hold."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from raypq.cli import main
from raypq.data import arrays, texts
from raypq.data.classes import ClassTable
from raypq.data.id_list import IdList
from raypq.errors import ConfigError, InputError

IDS = ["a", "b", "c", "d", "e", "f"]
E = np.arange(12, dtype=np.float32).reshape(6, 2)
COLUMNS = {
    "class_id": IDS,
    "embedding": E,
    "seen": np.array([True, True, False, False, False, False]),
    "image_count": np.array([9, 9, 3, 8, 0, 8]),
    "in_2hops": np.array([False, False, True, False, False, False]),
    "in_3hops": np.array([False, False, True, True, False, False]),
}


@pytest.fixture
def table(write) -> ClassTable:
    return ClassTable.open(write("classes.parquet", name=["A", None, "C", "", "E", "F"], **COLUMNS))


def chosen(table: ClassTable, spec: str) -> str:
    return "".join(table.ids[int(index)].as_py() for index in table.select(spec))


def test_what_it_holds(table):
    assert len(table) == 6
    assert table.names == ["A", "b", "C", "d", "E", "F"], "the class_id where there is no name"
    np.testing.assert_array_equal(table.embeddings, E)
    assert table.embeddings.dtype == np.float32


@pytest.mark.parametrize(
    ("spec", "ids"),
    [
        ("all", "abcdef"),
        ("seen", "ab"),
        ("unseen", "cdef"),
        ("2-hops", "c"),
        ("3-hops", "cd"),
        ("most-1", "d"),  # equal counts: in table order
        ("most-2", "df"),
        ("least-1", "c"),  # a class without images is in no populated split
        ("least-2", "cd"),
        ("most-500", "cdf"),
        ("most-5K", "cdf"),
        ("least-1k", "cdf"),
    ],
)
def test_splits(table, spec, ids):
    assert chosen(table, spec) == ids


@pytest.mark.parametrize(
    ("spec", "ids"),
    [("seen+2-hops", "abc"), ("2-hops+3-hops", "cd"), ("most-1+least-1+seen", "abcd")],
)
def test_joined_splits(table, spec, ids):
    assert chosen(table, spec) == ids, "each class once, in table order"


def test_a_file_whose_name_holds_a_plus(table, tmp_path):
    (tmp_path / "a+b").write_text("b")
    assert chosen(table, str(tmp_path / "a+b")) == "b"
    with pytest.raises(ConfigError, match="unknown split 'x'"):
        table.select("seen+x")


def test_thousands(write):
    n = 2500
    path = write(
        "big.parquet",
        class_id=[f"{i:05d}" for i in range(n)],
        seen=np.zeros(n, bool),
        image_count=np.arange(1, n + 1),
    )
    table = ClassTable.open(path)
    np.testing.assert_array_equal(table.select("most-1K"), np.arange(1500, 2500))
    np.testing.assert_array_equal(table.select("least-2K"), np.arange(2000))


def test_a_file_of_ids(table, tmp_path):
    path = tmp_path / "some ids.txt"
    path.write_text("d\n\n  a  \n")
    assert chosen(table, str(path)) == "ad", "in table order"


def test_a_file_of_ids_as_windows_writes_it(table, tmp_path):
    (tmp_path / "some.txt").write_bytes(b"\xef\xbb\xbfd\r\n a \r\n\r\n")
    assert chosen(table, str(tmp_path / "some.txt")) == "ad"


def test_a_parquet_file_of_ids(table, write):
    assert chosen(table, write("some.parquet", class_id=["f", "b"])) == "bf"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"z\n\ny\n", r"at least one class_id of .*, found 2 .*line 1: class_id 'z' is not in"),
        (b"a\n\na\n", "line 3: expected each class_id once"),
        (b"", "at least one class"),
        (b"\xff\xfe", "UTF-8"),
    ],
)
def test_bad_files_of_ids(table, tmp_path, content, says):
    path = tmp_path / "ids.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=says):
        table.select(str(path))


@pytest.mark.parametrize("spec", ["4-hops", "most-", "most-K", "most-x", "most-²", "nothing.txt"])
def test_unknown_splits(table, spec):
    with pytest.raises(ConfigError, match=r"unknown split.*most-N"):
        table.select(spec)


def test_an_empty_split(table):
    with pytest.raises(InputError, match="at least one class in 'most-0'"):
        table.select("most-0")


@pytest.mark.parametrize(
    ("spec", "column"),
    [("seen", "seen"), ("unseen", "seen"), ("2-hops", "in_2hops"), ("most-3", "image_count")],
)
def test_a_split_names_the_column_it_lacks(write, spec, column):
    table = ClassTable.open(write("c.parquet", class_id=IDS))
    with pytest.raises(InputError, match=f"column '{column}' for '{spec}'"):
        table.select(spec)


def test_no_embeddings(write):
    path = write("c.parquet", class_id=IDS)
    with pytest.raises(InputError, match=r"c\.parquet: expected a column 'embedding'"):
        _ = ClassTable.open(path).embeddings


@pytest.mark.parametrize("layout", ["fixed_size_list", "list", "large_list", "tensor"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_embeddings_of_every_type(write, column, layout, dtype):
    path = write("c.parquet", class_id=IDS, embedding=column(layout, dtype, E))
    np.testing.assert_array_equal(ClassTable.open(path).embeddings, E)


@pytest.mark.parametrize(
    "ids", [pa.array(range(6)), pa.array(IDS, pa.large_string()), pa.array(IDS).dictionary_encode()]
)
def test_ids_of_every_type(write, ids):
    table = ClassTable.open(write("c.parquet", class_id=ids))
    assert table.ids.to_pylist() == [str(key) for key in ids.to_pylist()]


@pytest.mark.parametrize(
    "values",
    [
        pa.array([1, 1, 0, 0, 0, 0], pa.int8()),
        pa.array([1, 1, 0, 0, 0, 0], pa.uint64()),
        pa.array([1.0, 1.0, 0.0, 0.0, -0.0, 0.0]),
        pa.array([1, 1, 0, 0, 0, 0], pa.bool8()),
    ],
)
def test_flags_as_zero_and_one(write, values):
    changed = COLUMNS | {"seen": values, "in_3hops": values}
    found = ClassTable.open(write("classes.parquet", **changed))
    np.testing.assert_array_equal(found.seen, COLUMNS["seen"])
    np.testing.assert_array_equal(found.hops["in_3hops"], COLUMNS["seen"])
    assert found.seen.dtype == np.bool_


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (pa.nulls(6), IDS),
        (pa.array([7, None, 0, 1, 2, 3]), ["7", "b", "0", "1", "2", "3"]),
        (pa.array([b"A", None, b"", b"D", b"E", b"F"]), ["A", "b", "c", "D", "E", "F"]),
        (pa.array(["A", None, "", "D", "E", "F"]).dictionary_encode(), [*"AbcDEF"]),
    ],
)
def test_names_of_every_type(write, names, told):
    found = ClassTable.open(write("classes.parquet", **COLUMNS, name=names))
    assert found.names == told


@pytest.mark.parametrize("kind", [pa.int16(), pa.uint64(), pa.string(), pa.string_view()])
def test_classes_and_labels_meet_by_their_text(write, kind):
    ids = pa.array(["0", "7", "10", "3", "4", "5"])
    ids = ids.cast(kind) if kind == pa.string_view() else ids.cast(pa.int64()).cast(kind)
    table = ClassTable.open(write("classes.parquet", **COLUMNS | {"class_id": ids}))
    labels = texts.strings(pa.array([10, None, 7], pa.int32()), where="x", nulls=True)
    assert table.index(labels, where="x").tolist() == [2, -1, 1]
    with pytest.raises(InputError, match="'007'"):
        table.index(pa.array(["007"]), where="x")


def test_many_row_groups(write):
    path = write("c.parquet", row_group=2, **COLUMNS)
    np.testing.assert_array_equal(ClassTable.open(path).embeddings, E)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"class_id": ["a", "b", "a", "b", "c", "d"]}, "unique class_ids, found 2 repeated, .*'a'"),
        ({"class_id": ["a", None, "c", "d", "e", "f"]}, "'class_id', row 1: expected no nulls"),
        ({"class_id": [0.5] * 6}, "strings or integers"),
        ({"class_id": None}, "a column 'class_id', found columns embedding"),
        ({"seen": [True, None] * 3}, r"booleans .or 0 and 1. without nulls, found bool with 3"),
        ({"seen": ["true", "false"] * 3}, r"found string with 0 nulls.*CAST.seen AS BOOLEAN"),
        ({"seen": [0, 1, 2] * 2}, r"'seen', row 2: expected 0 or 1, found 2"),
        ({"seen": [0.0, 1.0, np.nan] * 2}, r"'seen', row 2: expected 0 or 1, found nan"),
        ({"in_2hops": [0, 1, -1] * 2}, r"'in_2hops', row 2: expected 0 or 1"),
        ({"seen": pa.nulls(6)}, r"found null with 6 nulls"),
        ({"image_count": [1.0] * 6}, r"integers without nulls, found double.*BIGINT"),
        ({"image_count": pa.array([2**63] * 6, pa.uint64())}, r"int64 counts"),
        ({"class_id": [0.5] * 6}, r"strings or integers, found double"),
        ({"class_id": [True] * 6}, r"strings or integers, found bool"),
        ({"image_count": [0.5] * 6}, "'image_count': expected integers"),
        ({"in_2hops": ["yes"] * 6}, "'in_2hops': expected booleans"),
        ({"embedding": ["x"] * 6}, "'embedding': expected a vector column"),
        ({"embedding": pa.array([[1.0]] * 5 + [[1.0, 2.0]])}, "row 5: expected 1 values, found 2"),
        (
            {"embedding": pa.array([None] * 6, pa.list_(pa.float32()))},
            "embeddings, found nulls only",
        ),
        ({"embedding": np.where(E == 7, np.nan, E)}, r"row 3 \(id 'd'\).*NaN or Inf"),
    ],
)
def test_bad_tables(write, changes, says):
    columns = {key: value for key, value in (COLUMNS | changes).items() if value is not None}
    path = write("c.parquet", **columns)
    with pytest.raises(InputError, match=says) as caught:
        ClassTable.open(path)
    assert path in str(caught.value)


def test_an_empty_table(write):
    path = write("c.parquet", class_id=pa.array([], pa.string()), embedding=E[:0])
    with pytest.raises(InputError, match="at least one class in 'all'"):
        ClassTable.open(path).select("all")


def test_labels_to_indices(table):
    labels = pa.array(["f", None, "a"])
    np.testing.assert_array_equal(table.index(labels, where="x"), [5, -1, 0])
    with pytest.raises(InputError, match=r"x, row 102: expected a label.*found 'z' \(2 such"):
        table.index(pa.array(["a", "b", "z", "y"]), where="x", row0=100)


def test_the_imagenet_splits(data_root):
    """The published sizes of the splits on the real class table."""
    table = ClassTable.open(str(data_root / "imagenet21k" / "classes.parquet"))
    assert len(table) == 21841
    sizes = {spec: len(table.select(spec)) for spec in ("seen", "2-hops", "3-hops", "most-5K")}
    assert sizes["seen"] == 999
    assert sizes["most-5K"] == 5000
    assert 1000 < sizes["2-hops"] < sizes["3-hops"] < 21841 - 999
    most, least = table.select("most-500"), table.select("least-500")
    count, seen = table.image_count, table.seen
    assert not seen[most].any()
    assert not seen[least].any()
    assert count[most].min() >= np.delete(count, np.r_[most, np.flatnonzero(seen)]).max()
    assert 0 < count[least].max() <= count[most].min()


def test_a_written_table_reads_back_the_same(tmp_path):
    """The columns as another program would write them."""
    table = pa.table({"class_id": IDS, "embedding": arrays.fixed_list(E)})
    pq.write_table(table, tmp_path / "c.parquet", compression="gzip", version="1.0")
    assert json.dumps(ClassTable.open(str(tmp_path / "c.parquet")).ids.to_pylist()) == json.dumps(
        IDS
    )


def test_a_class_without_embedding_is_left_out_by_name(write, caplog):
    vectors = pa.array([[1.0], [2.0], None, [4.0], None, [6.0]], pa.list_(pa.float32()))
    with caplog.at_level("WARNING", "raypq"):
        table = ClassTable.open(write("c.parquet", **COLUMNS | {"embedding": vectors}))
    assert table.excluded == ("c", "e")
    assert "2 classes have no embedding and are left out (c, e)" in caplog.text
    assert "infer-semantics" in caplog.text
    assert table.ids.to_pylist() == ["a", "b", "d", "f"]
    np.testing.assert_array_equal(table.embeddings[:, 0], [1, 2, 4, 6])
    assert chosen(table, "unseen") == "df"
    # Rows labelled with such a class count as unlabelled; an unknown label is still an error.
    assert table.index(pa.array(["d", "c", None]), where="x").tolist() == [2, -1, -1]
    with pytest.raises(InputError, match="'z'"):
        table.index(pa.array(["z"]), where="x")


@pytest.mark.parametrize("listed", ["some.txt", "some.parquet"])
@pytest.mark.parametrize("joined", ["", "+3-hops"])
def test_listed_classes_that_the_table_lacks_are_left_out_by_name(
    write, tmp_path, caplog, listed, joined
):
    """Retired ones, and those that have lost their embedding: a list outlives its table."""
    vectors = pa.array([[1.0], [2.0], None, [4.0], [5.0], [6.0]], pa.list_(pa.float32()))
    table = ClassTable.open(write("c.parquet", **COLUMNS | {"embedding": vectors}))
    (tmp_path / "some.txt").write_text("\nz\na\nc\n")
    spec = write(listed, class_id=["a", "z", "c"]) if listed != "some.txt" else tmp_path / listed
    place, other = ("row 1", "row 2") if listed != "some.txt" else ("line 2", "line 4")
    kept = "ad" if joined else "a"
    with caplog.at_level("WARNING", "raypq"):
        assert chosen(table, f"{spec}{joined}") == kept
    assert f"{spec}: 2 class_id(s) are left out: {place}: class_id 'z' is not in" in caplog.text
    assert f"{other}: class_id 'c' has no embedding in" in caplog.text
    assert table.selection(f"{spec}{joined}").summary() == {
        "left_out_candidates": {"classes": 2, "names": ["c", "z"]}
    }
    with pytest.raises(InputError, match=rf"{place}: .*unknown_labels: refuse.*'z'.*\(2 such"):
        table.select(f"{spec}{joined}", unknown="refuse")


def test_a_list_of_classes_that_are_all_there_says_nothing(table, tmp_path, caplog):
    (tmp_path / "some.txt").write_text("d\na\n")
    with caplog.at_level("WARNING", "raypq"):
        table.select(str(tmp_path / "some.txt"), unknown="refuse")
    assert table.selection(str(tmp_path / "some.txt")).summary() == {}
    assert not caplog.records


@pytest.mark.parametrize(
    "name", ["c.parquet", "c.PARQUET", "c.pq", "c.Parq", "c.txt", "c", "c.parquet.bak"]
)
def test_a_parquet_file_of_ids_of_any_name(table, write, name):
    assert chosen(table, write(name, class_id=["f", "b"])) == "bf"


def test_of_a_file_of_candidates_the_ids_alone_are_read(table, write):
    nulls = pa.array([None, [1.0]], pa.list_(pa.float32()))
    path = write("some.parquet", class_id=["f", "b"], embedding=nulls, seen=["?", None])
    assert chosen(table, path) == "bf", "its own embeddings, or what it lacks, do not count"
    for content, says in ((["f", None], "row 1: expected no nulls"), ([0.5, 1.0], "strings or in")):
        with pytest.raises(InputError, match=rf"bad\.pq, column 'class_id'.*{says}"):
            table.select(write("bad.pq", class_id=content))


NAMED_BY_USERS = {
    "a class table": ClassTable.open,
    "candidates": lambda uri: table_of(uri).select(uri),
    "ids": IdList.read,
}


def table_of(uri: str) -> ClassTable:
    path = Path(uri).parent / "table.parquet"
    pq.write_table(pa.table({"class_id": IDS}), path)
    return ClassTable.open(str(path))


@pytest.mark.parametrize("what", NAMED_BY_USERS)
def test_a_folder_in_place_of_a_file_is_told(tmp_path, what):
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"/folder: expected a .*file.*, found a folder"):
        NAMED_BY_USERS[what](str(tmp_path / "folder"))


def test_parquet_in_place_of_a_text_of_ids_is_told(write):
    with pytest.raises(InputError, match=r"ids\.txt: expected a text file .*found a Parquet file"):
        IdList.read(write("ids.txt", id=["a"]))


BYTES = [pa.binary(8), pa.binary(), pa.large_binary(), pa.binary_view()]


@pytest.mark.parametrize("kind", BYTES)
def test_embeddings_of_bytes_whose_width_is_noted(tmp_path, kind):
    for dtype, size in (("float32", 8), ("float16", 4)):
        kept = pa.binary(size) if pa.types.is_fixed_size_binary(kind) else kind
        stored = pa.array([row.tobytes() for row in E.astype(dtype)], pa.binary()).cast(kept)
        field = pa.field("embedding", kept, metadata={"raypq.width": "2"})
        schema = pa.schema([pa.field("class_id", pa.string()), field])
        pq.write_table(pa.table([IDS, stored], schema=schema), tmp_path / "c.parquet")
        found = ClassTable.open(str(tmp_path / "c.parquet"))
        np.testing.assert_array_equal(found.embeddings, E)


@pytest.mark.parametrize("fixed", [True, False])
def test_embeddings_of_bytes_that_only_float16_explains(write, fixed):
    wide = np.arange(18, dtype=np.float16).reshape(6, 3)
    stored = pa.array([row.tobytes() for row in wide], pa.binary(6) if fixed else pa.binary())
    found = ClassTable.open(write("c.parquet", class_id=IDS, embedding=stored))
    np.testing.assert_array_equal(found.embeddings, wide.astype(np.float32))


@pytest.mark.parametrize("kind", BYTES)
def test_the_remedy_for_embeddings_of_bytes_works(write, tmp_path, kind):
    """The error's own command makes a table that reads."""
    stored = pa.array([row.tobytes() for row in E], pa.binary()).cast(kind)
    path = write("c.parquet", class_id=IDS, embedding=stored, seen=[True, False] * 3)
    with pytest.raises(InputError, match=r"'embedding'.*may be float16 or float32") as caught:
        ClassTable.open(path)
    command = str(caught.value).partition("raypq repack ")[2]
    command = command.replace("WIDTH", "2").replace("FOLDER", str(tmp_path / "out"))
    run = CliRunner().invoke(main, ["repack", *shlex.split(command), "--cluster", "none"])
    assert run.exit_code == 0, run.output
    (made,) = (tmp_path / "out").glob("*.parquet")
    found = ClassTable.open(str(made))
    np.testing.assert_array_equal(found.embeddings, E)
    assert found.ids.to_pylist() == IDS
    assert found.seen.tolist() == [True, False] * 3
