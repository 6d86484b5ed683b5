"""Labels of every type, in some shards and not in others; and a label column that is not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tinystore import ALONE, encode, model_at, rows_of, search, shard, vectors

from raypq import api
from raypq.config import (
    ClusterabilityJob,
    Columns,
    ExtractJob,
    InferSemanticsJob,
    ReindexJob,
    RepackJob,
    RetrievalJob,
    SplitJob,
    TrainJob,
)
from raypq.data import arrays
from raypq.errors import InputError, JobError, RaypqError

N = 60
LABELS = [str(row % 3) for row in range(N)]
X = vectors(3 * N)
STRINGS = pa.array(LABELS)
NULLS = pa.nulls(N, pa.string())
NONE: dict[str, pa.Array | None] = {
    "no column": None,
    "the type null": pa.nulls(N),
    "nulls of int8": pa.nulls(N, pa.int8()),
    "nulls of a dictionary": pa.nulls(N, pa.string()).dictionary_encode(),
}
KINDS = {
    "int8": STRINGS.cast(pa.int8()),
    "uint64": STRINGS.cast(pa.uint64()),
    "large_string": STRINGS.cast(pa.large_string()),
    "string_view": STRINGS.cast(pa.string_view()),
    "binary": STRINGS.cast(pa.binary()),
    "dictionary": STRINGS.dictionary_encode(),
    "dictionary of int32": STRINGS.cast(pa.int32()).dictionary_encode(),
}


def store(root: Path, labels: list[pa.Array | None]) -> str:
    """Three shards of features with such labels, encoded."""
    for part, column in enumerate(labels):
        at = slice(part * N, (part + 1) * N)
        ids = pa.array(range(at.start, at.stop))
        shard(root / "features" / f"p{part}.parquet", X[at], ids, column)
    shard(root / "queries.parquet", X[:6], pa.array(range(6)), STRINGS[:6])
    encode(root, str(root / "features"))
    return str(root / "codes")


def answers(root: Path, labels: list[pa.Array | None]) -> dict[str, Any]:
    """What every verb that reads labels says."""
    codes = store(root, labels)
    queries = [str(root / "queries.parquet")]
    found: dict[str, Any] = {"labels": rows_of(codes)["label"].to_pylist()}
    for number, text in enumerate(
        ("label = '1'", "label IS NULL", "label != '1'", "NOT label IN ('1', 2)", "label > '0'")
    ):
        table = search(codes, root / f"o{number}", queries=queries, top_k=200, filter=text)
        found[text] = table["id"].to_pylist()
    job = RetrievalJob(codes=codes, queries=queries, at=(1, 10), where=ALONE)
    figures = api.evaluate_retrieval(job)
    found["retrieval"] = {name: figures[name] for name in figures if name not in ("codes", "run")}
    probe = ClusterabilityJob(features=[str(root / "features")], space="raw", restarts=2)
    return found | {"clusterability": api.clusterability(probe)}


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, Any]]:
    """The same where the shard of a number has nulls of the type string."""
    known: dict[int, dict[str, Any]] = {}

    def of(bare: int) -> dict[str, Any]:
        if bare not in known:
            labels = [NULLS if part == bare else STRINGS for part in range(3)]
            known[bare] = answers(tmp_path_factory.mktemp("w"), labels)
        return known[bare]

    return of


@pytest.mark.parametrize("how", NONE)
@pytest.mark.parametrize("bare", [0, 1, 2])
def test_a_shard_without_labels_beside_others(wanted, tmp_path, bare, how):
    labels = [NONE[how] if part == bare else STRINGS for part in range(3)]
    assert answers(tmp_path, labels) == wanted(bare)


@pytest.mark.parametrize("kind", KINDS)
def test_labels_of_every_type_are_text(wanted, tmp_path, kind):
    assert answers(tmp_path, [KINDS[kind], NULLS, STRINGS]) == wanted(1)


@pytest.mark.parametrize("how", NONE)
def test_classes_of_codes_without_labels_in_one_shard(home, how):
    path = home.shard(2)
    table = pq.read_table(path).drop_columns(["label"])
    if (column := NONE[how]) is not None:
        nulls = pa.nulls(len(table), column.type)
        table = table.append_column("label", nulls)
    pq.write_table(table, path)
    home.encode()
    version = home.classify()
    assert version.summary["result"]["accuracy"]["images"] == version.rows - len(table)
    for by in ("label", "image"):
        told = api.infer_semantics(
            InferSemanticsJob(
                model=home("old"), codes=home("codes"), classes=home("classes.parquet"), by=by,
                output=home(f"like-{by}"), where=ALONE,
            )
        )  # fmt: skip
        assert told["images"] == version.rows - (len(table) if by == "label" else 0)
    with pytest.raises(JobError, match=r"part-00002.*label"):
        home_train(home)


def home_train(home: Any) -> None:
    api.train(
        TrainJob(
            method="pqzsl", features=[home("features")], classes=home("classes.parquet"),
            output=home("never"), settings={"M": 5, "K": 16, "iterations": 1}, where=ALONE,
        )
    )  # fmt: skip


@pytest.mark.parametrize("values", [[0.5] * N, [True] * N, [["a", "b"]] * N])
def test_labels_of_other_types_are_refused_with_what_to_do(tmp_path, values):
    with pytest.raises(JobError, match=r"p1\.parquet, column 'label'.*cast the column to text"):
        store(tmp_path, [STRINGS, pa.array(values), STRINGS])


def test_a_store_without_any_label(tmp_path):
    codes = store(tmp_path, [None, pa.nulls(N), None])
    queries = [str(tmp_path / "queries.parquet")]
    with pytest.raises(InputError, match="a column 'label' to filter by, found codes without"):
        search(codes, tmp_path / "o", queries=queries, filter="label = 'x'")
    with pytest.raises(RaypqError, match="rows with labels, found none"):
        api.evaluate_retrieval(RetrievalJob(codes=codes, queries=queries, at=(1,), where=ALONE))


NAMED = Columns(label="klass")


def encoded(root: Path) -> None:
    encode(root, str(root / "features"), columns=NAMED)


def reindexed(root: Path) -> None:
    api.reindex(
        ReindexJob(
            model=model_at(root), features=[str(root / "features")], codes=str(root / "codes"),
            columns=NAMED, where=ALONE,
        )
    )  # fmt: skip


def trained(root: Path) -> None:
    api.train(
        TrainJob(
            method="pq", features=[str(root / "features")], output=str(root / "new"),
            settings={"M": 2, "K": 16, "iterations": 1}, columns=NAMED, where=ALONE,
        )
    )  # fmt: skip


def extracted(root: Path) -> None:
    columns = NAMED.model_copy(update={"image_size": 2})
    api.extract(
        ExtractJob(
            images=[str(root / "features")], backbone=model_at(root), output=str(root / "x"),
            columns=columns, where=ALONE,
        )
    )  # fmt: skip


def repacked(root: Path) -> None:
    job = RepackJob(
        features=[str(root / "features")], output=str(root / "packed"), columns=NAMED, where=ALONE
    )
    api.repack(job)


def cut(root: Path) -> None:
    api.split(
        SplitJob(
            protocol=2, share=0.4, features=[str(root / "features")], output=str(root / "parts"),
            columns=NAMED, where=ALONE,
        )
    )  # fmt: skip


def asked(root: Path) -> None:
    shard(root / "f.parquet", X[:N], pa.array(range(N)), STRINGS)
    encode(root, str(root / "f.parquet"), output="c")
    queries = [str(root / "features")]
    api.evaluate_retrieval(
        RetrievalJob(codes=str(root / "c"), queries=queries, at=(1,), columns=NAMED, where=ALONE)
    )


def probed(root: Path) -> None:
    api.clusterability(
        ClusterabilityJob(
            features=[str(root / "features")], space="raw", restarts=1, columns=NAMED
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    "run", [encoded, reindexed, trained, extracted, repacked, cut, asked, probed]
)
def test_a_label_column_that_no_shard_has(tmp_path, run):
    for part in range(2):
        shard(tmp_path / "features" / f"p{part}.parquet", X[:N], pa.array(range(N)), STRINGS)
    with pytest.raises(
        InputError, match=r"'klass' \(--label-column, columns.label\).*found columns id, fea.*lab"
    ):
        run(tmp_path)
    assert not (tmp_path / "codes" / "snapshots").exists()
    # One shard that has it is enough: another may be without labels.
    if run is cut:  # which wants a label of every row
        (tmp_path / "features" / "p0.parquet").unlink()
    if run is not extracted:
        columns = {"id": range(N), "feature": arrays.fixed_list(X[:N]), "klass": STRINGS}
        pq.write_table(pa.table(columns), tmp_path / "features" / "p1.parquet")
        run(tmp_path)


def test_classified_features_with_a_label_column_that_no_shard_has(home):
    with pytest.raises(InputError, match=r"'klass' \(--label-column, columns.label\)"):
        home.classify(codes=None, model=home("old"), features=[home("features")], columns=NAMED)


@pytest.mark.parametrize("how", NONE)
@pytest.mark.parametrize("rows", [0, N])
def test_queries_without_labels_beside_others(tmp_path, how, rows):
    """They count as unlabelled, as everywhere; without rows they count nothing."""
    codes = store(tmp_path, [STRINGS] * 3)
    column = NONE[how]
    places = [str(tmp_path / "queries.parquet")]
    wanted = api.evaluate_retrieval(
        RetrievalJob(codes=codes, queries=places, at=(1, 10), where=ALONE)
    )
    bare = shard(
        tmp_path / "a" / "bare.parquet", X[:rows], pa.array(range(rows), pa.int64()),
        None if column is None else column[:rows],
    )  # fmt: skip
    for queries in ([bare, *places], [*places, bare]):
        job = RetrievalJob(codes=codes, queries=queries, at=(1, 10), where=ALONE)
        found = api.evaluate_retrieval(job)
        assert found.pop("queries_without_label") == rows
        for name in found:
            assert name == "run" or found[name] == wanted[name]
    with pytest.raises(InputError, match=rf"query with a label .*'label'.*, found {rows} without"):
        api.evaluate_retrieval(RetrievalJob(codes=codes, queries=[bare], at=(1,), where=ALONE))
