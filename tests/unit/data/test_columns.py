"""Every column type of a feature file gives the same rows, and a bad row is named."""

from __future__ import annotations

import io
import re
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raypq.config import Columns
from raypq.data import arrays, images, texts
from raypq.data.features import ReadOptions, batch_rows, open_features, read_batches
from raypq.data.ids import IdRule
from raypq.data.ids import read as read_ids
from raypq.data.layouts import arrow_types
from raypq.data.storage import list_shards
from raypq.data.store.sources import open_sources
from raypq.data.survey import survey
from raypq.errors import InputError, JobError

LAYOUTS = [
    (layout, dtype)
    for layout in ("fixed_size_list", "list", "large_list", "fixed_size_binary", "tensor")
    for dtype in ("float16", "float32", "float64")
    if (layout, dtype) != ("fixed_size_binary", "float64")
]
# Exact in float16, so that every type holds the same values.
X = (np.arange(40, dtype=np.float32).reshape(10, 4) - 20) / 8
IDS = [f"i{row}" for row in range(10)]
INTEGERS = [
    pa.int8(), pa.int16(), pa.int32(), pa.int64(),
    pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64(),
]  # fmt: skip


def read(path: str, *, width: int | None = None, columns: Columns | None = None) -> list:
    shard = list_shards([path])[0]
    return list(read_batches(shard, columns or Columns(), width=width))


@pytest.mark.parametrize(("layout", "dtype"), LAYOUTS)
def test_every_layout_gives_the_same_rows(write, column, layout, dtype):
    path = write("x.parquet", id=IDS, feature=column(layout, dtype, X))
    (batch,) = read(path, width=4)
    assert batch.X.dtype == np.float32
    np.testing.assert_array_equal(batch.X, X)
    assert batch.ids.to_pylist() == IDS
    assert batch.labels is None


@pytest.mark.parametrize(("layout", "dtype"), LAYOUTS)
def test_the_footer_tells_rows_and_width(write, column, layout, dtype):
    path = write("x.parquet", id=IDS, feature=column(layout, dtype, X))
    found = survey(open_sources([path], Columns(width=4)))
    assert (list(found.rows), found.width, list(found.failures)) == ([10], 4, [])


@pytest.mark.parametrize(("layout", "dtype"), LAYOUTS)
def test_slices_and_offsets(column, layout, dtype):
    part = column(layout, dtype, X).slice(3, 5)
    found = arrays.matrix(part, width=4, where="x")
    assert found.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(found, X[3:8].astype(dtype))


@pytest.mark.parametrize(("layout", "dtype"), LAYOUTS)
def test_an_empty_shard_gives_no_batch(write, column, layout, dtype):
    path = write("x.parquet", id=pa.array([], pa.string()), feature=column(layout, dtype, X[:0]))
    assert read(path, width=4) == []


@pytest.mark.parametrize("layout", ["fixed_size_list", "list", "large_list", "tensor"])
def test_the_width_need_not_be_known(write, column, layout):
    path = write("x.parquet", id=IDS, feature=column(layout, "float32", X))
    np.testing.assert_array_equal(read(path)[0].X, X)


def test_lists_share_arrows_memory(column):
    whole = column("list", "float32", X)
    assert np.shares_memory(
        arrays.matrix(whole, width=4, where="x"), whole.values.to_numpy(zero_copy_only=True)
    )


@pytest.mark.parametrize(
    ("ids", "kind"),
    [
        (pa.array(IDS), pa.string()),
        (pa.array(IDS, pa.large_string()), pa.string()),
        (pa.array(IDS).dictionary_encode(), pa.string()),
        (pa.array(range(10), pa.int64()), pa.int64()),
        *((pa.array(range(10), kind), pa.int64()) for kind in INTEGERS),
        (pa.array(range(10), pa.uint8()).dictionary_encode(), pa.int64()),
        (pa.array(IDS, pa.string_view()), pa.string()),
        (pa.array([name.encode() for name in IDS], pa.binary()), pa.string()),
        (pa.array([name.encode() for name in IDS], pa.binary_view()), pa.string()),
    ],
)
def test_ids(write, ids, kind):
    (batch,) = read(write("x.parquet", id=ids, feature=X))
    assert batch.ids.type == kind
    told = [key.decode() if isinstance(key, bytes) else key for key in ids.to_pylist()]
    assert batch.ids.to_pylist() == told


def test_uuids_are_their_canonical_text(write):
    several = [uuid.UUID(int=(7 << 120) + 11 * row) for row in range(10)]
    ids = pa.array([one.bytes for one in several], pa.uuid())
    (batch,) = read(write("x.parquet", id=ids, feature=X, label=ids))
    assert batch.ids.to_pylist() == [str(one) for one in several]
    assert batch.labels.to_pylist() == [str(one) for one in several]
    nulls = pa.array([None, *(one.bytes for one in several[1:])], pa.uuid())
    found = texts.strings(nulls.slice(0, 3), where="x", nulls=True)
    assert found.to_pylist() == [None, str(several[1]), str(several[2])]
    assert texts.strings(nulls.slice(1, 2), where="x", nulls=True).to_pylist() == [
        str(several[1]),
        str(several[2]),
    ]


@pytest.mark.parametrize("least", [-(2**63), 2**63 - 10, 1_812_345_678_901_234_000])
def test_every_int64_is_an_id(write, least):
    ids = pa.array(range(least, least + 10), pa.int64())
    assert read(write("x.parquet", id=ids, feature=X))[0].ids == ids


def test_uint64_ids_must_fit_into_int64(write):
    large = [*range(9), 2**63 - 1]
    (batch,) = read(write("x.parquet", id=pa.array(large, pa.uint64()), feature=X))
    assert batch.ids.to_pylist() == large
    large[6] = 2**63
    path = write("y.parquet", id=pa.array(large, pa.uint64()), feature=X)
    with pytest.raises(InputError, match=rf"'id', row 6: .*int64.*found {2**63}.*VARCHAR"):
        read(path)


@pytest.mark.parametrize(
    "labels",
    [
        pa.array([1, 2] * 5, pa.int32()),
        pa.array(["1", "2"] * 5),
        pa.array(["1", "2"] * 5, pa.large_string()),
        pa.array(["1", "2"] * 5).dictionary_encode(),
        pa.array([1, 2] * 5).dictionary_encode(),
        pa.array([1, 2] * 5, pa.uint64()),
        pa.array(["1", "2"] * 5, pa.string_view()),
        pa.array([b"1", b"2"] * 5),
    ],
)
def test_labels_are_strings(write, labels):
    (batch,) = read(write("x.parquet", id=IDS, feature=X, label=labels))
    assert batch.labels.type == pa.string()
    assert batch.labels.to_pylist() == ["1", "2"] * 5


def test_a_missing_label_stays_null(write):
    labels = pa.array(["a", None] * 5)
    (batch,) = read(write("x.parquet", id=IDS, feature=X, label=labels))
    assert batch.labels.to_pylist() == ["a", None] * 5


@pytest.mark.parametrize("kind", [pa.null(), pa.dictionary(pa.int32(), pa.null())])
def test_labels_of_nothing_but_nulls_count_as_none(kind):
    assert pa.types.is_null(arrow_types.plain_type(kind))


def test_a_label_column_of_the_type_null_counts_as_none(write):
    (batch,) = read(write("x.parquet", id=IDS, feature=X, label=pa.nulls(10)))
    assert batch.labels is None


def test_columns_of_other_names(write):
    path = write("x.parquet", key=IDS, vec=X, cls=["a"] * 10, other=[0] * 10)
    columns = Columns(id="key", feature="vec", label="cls")
    (batch,) = read(path, columns=columns)
    assert batch.labels.to_pylist() == ["a"] * 10


def test_batches_cover_every_row_once(write):
    n = 2 * batch_rows(4) + 17
    big = np.arange(4 * n, dtype=np.float32).reshape(n, 4)
    path = write("x.parquet", row_group=5000, id=np.arange(n), feature=big)
    batches = read(path, width=4)
    assert len(batches) > 2
    assert [batch.row for batch in batches] == list(
        np.cumsum([0, *[len(batch) for batch in batches]])[:-1]
    )
    np.testing.assert_array_equal(np.concatenate([batch.X for batch in batches]), big)


def test_batch_size_hangs_on_the_width_alone():
    assert batch_rows(4) == 8192
    assert batch_rows(512) == 8192
    assert batch_rows(2048) == 2048
    assert batch_rows(4096) == 1024
    assert batch_rows(10**9) == 64


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("layout", "dtype"), LAYOUTS)
def test_a_value_that_is_not_finite_names_file_row_and_id(write, column, layout, dtype, value):
    bad = X.copy()
    bad[6, 2] = value
    path = write("x.parquet", id=IDS, feature=column(layout, dtype, bad))
    with pytest.raises(InputError) as caught:
        read(path, width=4)
    for part in (path, "row 6", "'i6'", "finite", "NaN or Inf"):
        assert part in str(caught.value)


def test_inf_that_cancels_out_is_found(write):
    bad = X.copy()
    bad[2, 0], bad[5, 1] = np.inf, -np.inf
    with pytest.raises(InputError, match=r"row 2 \(id 'i2'\).*2 such row"):
        read(write("x.parquet", id=IDS, feature=bad))


def test_a_sum_too_large_for_float32_is_no_error(write):
    big = np.full((10, 4), 3e38, np.float32)
    np.testing.assert_array_equal(read(write("x.parquet", id=IDS, feature=big))[0].X, big)


def test_a_float64_too_large_for_float32_is_refused(write):
    big = X.astype(np.float64)
    big[3, 0] = 1e300
    with pytest.raises(InputError, match="row 3"):
        read(write("x.parquet", id=IDS, feature=big))


@pytest.mark.parametrize("layout", ["fixed_size_list", "list", "large_list", "tensor"])
@pytest.mark.parametrize("what", ["vector", "value"])
def test_nulls_name_the_row(write, column, layout, what):
    rows = X.tolist()
    rows[4] = None if what == "vector" else [1.0, None, 2.0, 3.0]
    kind = column(layout, "float32", X).type
    storage = kind.storage_type if layout == "tensor" else kind
    feature = pa.array(rows, storage)
    if layout == "tensor":
        feature = pa.ExtensionArray.from_storage(kind, feature)
    with pytest.raises(InputError, match=r"row 4.*null"):
        read(write("x.parquet", id=IDS, feature=feature), width=4)


def test_nulls_in_binary_name_the_row(write):
    rows = [row.tobytes() for row in X]
    rows[4] = None
    path = write("x.parquet", id=IDS, feature=pa.array(rows, pa.binary(16)))
    with pytest.raises(InputError, match=r"row 4.*null"):
        read(path, width=4)


def test_rows_are_counted_over_the_whole_file(write):
    n = batch_rows(4) + 100
    big = np.zeros((n, 4), np.float32)
    big[n - 1, 0] = np.nan
    path = write("x.parquet", id=np.arange(n), feature=big)
    with pytest.raises(InputError, match=rf"row {n - 1} \(id {n - 1}\)"):
        read(path, width=4)
    keys = pa.array([*range(n - 1), None], pa.int64())
    with pytest.raises(InputError, match=rf"column 'id', row {n - 1}: expected no nulls"):
        read(write("y.parquet", id=keys, feature=np.zeros((n, 4), np.float32)), width=4)


@pytest.mark.parametrize("layout", ["fixed_size_list", "list", "large_list", "fixed_size_binary"])
def test_another_width_than_the_models(write, column, layout):
    path = write("x.parquet", id=IDS, feature=column(layout, "float32", X))
    with pytest.raises(InputError) as caught:
        read(path, width=6)
    assert path in str(caught.value)
    assert "6" in caught.value.expected


def test_a_fixed_width_is_checked_before_any_row(write):
    path = write("x.parquet", id=pa.array([], pa.string()), feature=X[:0])
    with pytest.raises(InputError, match="expected vectors of width 6, found 4"):
        read(path, width=6)


@pytest.mark.parametrize("layout", [pa.list_, pa.large_list])
def test_mixed_widths_inside_a_shard(write, layout):
    rows = X.tolist()
    rows[7] = [1.0]
    path = write("x.parquet", id=IDS, feature=pa.array(rows, layout(pa.float32())))
    with pytest.raises(InputError, match="row 7: expected 4 values, found 1"):
        read(path)


def test_vectors_without_values(write):
    path = write("x.parquet", id=IDS, feature=pa.array([[]] * 10, pa.list_(pa.float32())))
    with pytest.raises(InputError, match="at least one value"):
        read(path)


def test_mixed_widths_across_shards(write):
    write("f/a.parquet", id=IDS, feature=X)
    write("f/b.parquet", id=IDS, feature=X[:, :3])
    folder = str(Path(write("f/c.parquet", id=IDS, feature=X)).parent)
    found = survey(open_sources([folder]))
    assert [Path(shard.uri).stem for shard in found.shards] == ["a", "c"]
    (failure,) = found.failures
    assert failure.shard.endswith("b.parquet")
    assert "width 4" in failure.reason
    assert "width 3" in failure.reason


def test_a_survey_of_bad_shards_only_names_them_all(write):
    write("f/a.parquet", id=IDS)
    folder = str(Path(write("f/b.parquet", id=IDS)).parent)
    with pytest.raises(JobError) as caught:
        survey(open_sources([folder]))
    assert [Path(item.shard).name for item in caught.value.failures] == ["a.parquet", "b.parquet"]


def test_a_survey_without_rows(write):
    path = write("x.parquet", id=pa.array([], pa.string()), feature=X[:0])
    with pytest.raises(InputError, match="at least one row"):
        survey(open_sources([path]))


def test_binary_needs_a_width(write, column):
    path = write("x.parquet", id=IDS, feature=column("fixed_size_binary", "float32", X))
    with pytest.raises(InputError, match=r"columns\.width"):
        read(path)
    with pytest.raises(InputError, match="10 or 20 bytes"):
        read(path, width=5)


@pytest.mark.parametrize(
    ("feature", "says"),
    [
        (pa.array(["x"] * 10), "vector column"),
        (pa.array([1.5] * 10), "vector column"),
        (pa.array([["x"] * 4] * 10), "cast the values to float32"),
        (pa.array([[True] * 4] * 10), "cast the values to float32"),
        (pa.array([[1] * 4] * 10, pa.list_(pa.decimal128(9, 2))), "cast the values to float32"),
        (pa.array([[1, 2, 3, 2**24 + 1]] * 10), "2²⁴"),
        (pa.array([[[1.0, 2.0], [3.0, 4.0]]] * 10), "1 × D.*a list of 2 lists"),
        (pa.array([[]] * 10, pa.list_(pa.list_(pa.float32()))), "a list of 0 lists"),
        (pa.array([[None]] * 10, pa.list_(pa.list_(pa.float32()))), "a vector, found a null"),
    ],
)
def test_columns_of_other_types(write, feature, says):
    path = write("x.parquet", id=IDS, feature=feature)
    with pytest.raises(InputError, match=says):
        read(path, width=4)


NESTED = [
    lambda X: pa.array([[row] for row in X.tolist()], pa.list_(pa.list_(pa.float32()))),
    lambda X: pa.array([[row] for row in X.tolist()], pa.list_(pa.list_(pa.float32(), 4), 1)),
    lambda X: pa.array([[row] for row in X.tolist()], pa.large_list(pa.list_(pa.float64(), 4))),
    lambda X: pa.array([[[row]] for row in X.tolist()], pa.list_(pa.list_(pa.list_(pa.float32())))),
    lambda X: pa.array(X.tolist(), pa.list_view(pa.float32())),
    lambda X: pa.array(X.tolist(), pa.large_list_view(pa.float64())),
]


@pytest.mark.parametrize("made", NESTED)
def test_vectors_within_one_list_and_as_views(write, made):
    path = write("x.parquet", id=IDS, feature=made(X))
    for width in (None, 4):
        np.testing.assert_array_equal(read(path, width=width)[0].X, X)
    assert survey(open_sources([path])).width == 4
    part = arrays.matrix(made(X).slice(3, 5), width=4, where="x")
    np.testing.assert_array_equal(part, X[3:8])
    rows = [7, 2, 2, 9]
    np.testing.assert_array_equal(
        arrays.matrix(made(X).take(pa.array(rows)), width=4, where="x"), X[rows]
    )


@pytest.mark.parametrize("kind", INTEGERS)
@pytest.mark.parametrize("layout", [pa.list_, pa.large_list, lambda kind: pa.list_(kind, 4)])
def test_integers_that_float32_holds(write, kind, layout):
    whole = np.arange(40).reshape(10, 4) + (87 if kind.bit_width == 8 else 0)
    if kind.bit_width >= 32:
        whole[3, 1] = 2**24
    if not pa.types.is_unsigned_integer(kind):
        whole[5, 2] = -1
    path = write("x.parquet", id=IDS, feature=pa.array(whole.tolist(), layout(kind)))
    (batch,) = read(path, width=4)
    assert batch.X.dtype == np.float32
    np.testing.assert_array_equal(batch.X, whole)


def test_integers_that_float32_cannot_hold_are_named(write):
    whole = np.ones((10, 4), np.int64)
    whole[7, 0] = -(2**24) - 1
    with pytest.raises(InputError, match=r"row 7: .*2²⁴.*cast the values to float32"):
        read(write("x.parquet", id=IDS, feature=whole), width=4)


BYTES = [pa.binary(), pa.large_binary(), pa.binary_view()]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("kind", BYTES)
def test_bytes_are_vectors_where_the_width_fits(write, kind, dtype):
    feature = pa.array([row.astype(dtype).tobytes() for row in X], kind)
    path = write("x.parquet", id=IDS, feature=feature)
    for width, columns in ((4, None), (None, Columns(width=4)), (4, Columns(width=4))):
        np.testing.assert_array_equal(read(path, width=width, columns=columns)[0].X, X)
    assert survey(open_sources([path], Columns(width=4))).width == 4
    part = arrays.matrix(feature.slice(3, 5), width=4, where="x")
    np.testing.assert_array_equal(part, X[3:8].astype(dtype))


@pytest.mark.parametrize("kind", BYTES)
def test_bytes_that_are_neither_images_nor_vectors_of_a_known_width(write, kind):
    path = write("x.parquet", id=IDS, feature=pa.array([row.tobytes() for row in X], kind))
    for width in (None, 12):
        with pytest.raises(InputError, match=r"column 'feature'.*no image.*--feature-width 4"):
            read(path, width=width)
    with pytest.raises(JobError, match="--feature-width 4"):
        survey(open_sources([path]))


@pytest.mark.parametrize("name", ["PNG", "BMP", "TGA", "JPEG", "WEBP"])
@pytest.mark.parametrize("kind", BYTES)
def test_bytes_of_images_are_images_though_all_of_one_size(write, kind, name):
    content = io.BytesIO()
    Image.fromarray(np.full((2, 2, 3), 255, np.uint8)).save(content, name)
    path = write("x.parquet", id=IDS, feature=pa.array([content.getvalue()] * 10, kind))
    for width, columns in ((12, None), (None, Columns(image_size=2))):
        (batch,) = read(path, width=width, columns=columns)
        np.testing.assert_allclose(batch.X, 1, atol=0.02)
    with pytest.raises(InputError, match="--image-size"):
        read(path)


def test_vectors_are_no_images():
    rng = np.random.default_rng(0)
    for width in (4, 12, 64, 513):
        for X in (rng.standard_normal((50, width)), rng.integers(0, 3, (50, width))):
            rows = [row.tobytes() for kind in ("f2", "f4") for row in X.astype(kind)]
            assert not any(images.is_image(row, signed=True) for row in rows)


def test_bytes_of_another_width_name_the_row(write):
    rows = [row.tobytes() for row in X]
    rows[6] = rows[6][:-1]
    path = write("x.parquet", id=IDS, feature=pa.array(rows))
    with pytest.raises(InputError, match=r"row 6: expected 8 or 16 bytes.*found 15 bytes"):
        read(path, columns=Columns(width=4))


@pytest.mark.parametrize("name", ["key", "vector"])
def test_missing_columns_list_what_is_there(write, name):
    path = write("x.parquet", id=IDS, feature=X, extra=IDS)
    columns = Columns(id="key") if name == "key" else Columns(feature="vector")
    with pytest.raises(InputError, match=rf"expected a column '{name}', found columns .*extra"):
        read(path, columns=columns)


def test_two_columns_of_one_name(tmp_path):
    vectors = arrays.fixed_list(X)
    table = pa.Table.from_arrays([pa.array(IDS), vectors, vectors], ["id", "feature", "feature"])
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(InputError, match="one column 'feature', found 2"):
        read(str(tmp_path / "x.parquet"))


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        (pa.array([*IDS[:9], None]), "row 9: expected no nulls"),
        (pa.array([*range(9), None], pa.int64()), "row 9: expected no nulls"),
        (pa.nulls(10), "row 0: expected no nulls"),
        (pa.nulls(10, pa.int32()), "row 0: expected no nulls"),
        *(
            (
                pa.array([1] * 10, pa.int64()).cast(kind),
                rf"strings or integers, found {re.escape(str(kind))}.*CAST",
            )
            for kind in (pa.float64(), pa.bool_(), pa.decimal128(20, 0))
        ),
        (pa.array([0] * 10, pa.date32()), "strings or integers, found date32.*CAST"),
        (pa.array([[1]] * 10), "strings or integers, found list.*CAST"),
        (pa.array([b"ok", *[b"\xff\xfe"] * 9]), "row 1: expected text.*fffe.*hexadecimal"),
    ],
)
def test_bad_ids(write, ids, says):
    with pytest.raises(InputError, match=says):
        read(write("x.parquet", id=ids, feature=X))


@pytest.mark.parametrize("labels", [[0.5] * 10, [True] * 10, [["a", "b"]] * 10])
def test_a_label_of_another_type(write, labels):
    with pytest.raises(InputError, match=r"column 'label'.*strings or integers.*cast"):
        read(write("x.parquet", id=IDS, feature=X, label=labels))


@pytest.mark.parametrize("kind", [pa.null(), pa.string(), pa.float64(), pa.int16()])
@pytest.mark.parametrize("rule", [None, "int64", "string"])
def test_a_shard_without_rows_follows_the_others(write, kind, rule):
    path = write("x.parquet", id=pa.array([], kind), feature=X[:0], label=pa.array([], kind))
    expected = rule or ("int64" if pa.types.is_integer(kind) else "string")
    shard = list_shards([path])[0]
    how = ReadOptions(rule=rule and IdRule(kind=rule, origin="y"))
    with open_features(shard, Columns(), width=4, how=how) as reader:
        assert str(reader.id_type) == expected
        assert list(reader.batches()) == []


def test_a_null_among_the_values_of_a_dictionary():
    for values in (pa.array(["a", None]), pa.array([1, None])):
        ids = pa.DictionaryArray.from_arrays(pa.array([0, 0, 1]), values)
        for kind in ("string", "int64") if pa.types.is_integer(values.type) else ("string",):
            with pytest.raises(InputError, match="row 2: expected no nulls"):
                read_ids(ids, kind, where="x")


@pytest.mark.parametrize(
    ("kind", "rule", "old", "found"),
    [
        (pa.int32(), "int64", False, pa.int64()),
        (pa.int32(), "string", False, None),
        (pa.int32(), "string", True, pa.string()),  # as stores of earlier versions have them
        (pa.uint64(), "string", True, pa.string()),
        (pa.int64(), "string", True, None),
        (pa.string(), "string", True, pa.string()),
        (pa.string(), "int64", False, None),
    ],
)
def test_ids_of_another_type_than_the_stores(write, kind, rule, old, found):
    path = write("x.parquet", id=pa.array(range(10), pa.int64()).cast(kind), feature=X)
    told = IdRule(kind=rule, origin="y.parquet", old=old)
    shard = list_shards([path])[0]
    if found is None:
        with (
            pytest.raises(
                InputError, match=rf"of one type.*{rule}, as in y\.parquet, found {kind}"
            ),
            open_features(shard, Columns(), width=4, how=ReadOptions(rule=told)),
        ):
            pass
        return
    with open_features(shard, Columns(), width=4, how=ReadOptions(rule=told)) as reader:
        (batch,) = reader.batches()
    assert batch.ids.type == reader.id_type == found
    assert [str(name) for name in batch.ids.to_pylist()] == [str(row) for row in range(10)]


class _Stranger(pa.ExtensionType):
    def __init__(self, stored: pa.DataType) -> None:
        super().__init__(stored, "acme.scaled")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, stored: pa.DataType, _: bytes) -> _Stranger:
        return cls(stored)


def _bfloat16(X: np.ndarray) -> tuple[pa.Array, np.ndarray]:
    upper = (np.ascontiguousarray(X, np.float32).view(np.uint32) >> 16).astype("<u2")
    stored = pa.array([row.tobytes() for row in upper], pa.binary(2 * X.shape[1]))
    column = pa.ExtensionArray.from_storage(pa.opaque(stored.type, "bfloat16", "acme"), stored)
    return column, (upper.astype(np.uint32) << 16).view(np.float32)


def test_bfloat16_is_read_exactly(tmp_path):
    X = np.random.default_rng(0).standard_normal((6, 12)).astype("f4")
    column, expected = _bfloat16(X)
    np.testing.assert_array_equal(arrays.matrix(column, width=12, where="f"), expected)
    np.testing.assert_array_equal(arrays.matrix(column[2:], width=None, where="f"), expected[2:])
    with pytest.raises(InputError, match="vectors of width 6, found 12"):
        arrays.matrix(column, width=6, where="f")


@pytest.mark.parametrize("registered", [True, False])
def test_vectors_of_an_unknown_extension_type_are_refused(tmp_path, registered):
    stored = pa.array([b"\0" * 24] * 3, pa.binary(24))
    column = pa.ExtensionArray.from_storage(_Stranger(stored.type), stored)
    if registered:
        field = pa.field("feature", column.type)
        with pytest.raises(InputError, match=r"extension type acme\.scaled.*cast .* to float32"):
            arrays.matrix(column, width=12, where="f")
    else:
        field = pa.field("feature", stored.type, metadata={b"ARROW:extension:name": b"acme.scaled"})
    with pytest.raises(InputError, match=r"extension type acme\.scaled.*cast .* to float32"):
        arrow_types.check_extension(field, "f")


def test_known_extension_types_are_read():
    X = np.arange(24, dtype=np.float32).reshape(2, 12)
    tensor = pa.fixed_shape_tensor(pa.float32(), (12,))
    column = pa.ExtensionArray.from_storage(tensor, arrays.fixed_list(X))
    np.testing.assert_array_equal(arrays.matrix(column, width=12, where="f"), X)
    name = b"datasets.features.features.Array2DExtensionType"
    arrow_types.check_extension(pa.field("", pa.list_(pa.float32()),
                                    metadata={b"ARROW:extension:name": name}), "f")  # fmt: skip
