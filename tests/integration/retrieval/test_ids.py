"""Ids of one type in a store: every integer is int64 in every verb, and what differs is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tinystore import ALONE, encode, model_at, rows_of, search, shard, vectors

import raypq
from raypq import api
from raypq.config import (
    DuplicatesJob,
    ExportFaissJob,
    ReindexJob,
    RetrievalJob,
)
from raypq.data.store import snapshot
from raypq.errors import ConfigError, InputError, JobError, RaypqError

SNOWFLAKE = 1_812_345_678_901_234_000  # 19 digits
N = 120
X = vectors(N)
Q = vectors(5, seed=9)
LABELS = pa.array([f"c{row % 3}" for row in range(N)])
KINDS = {
    "int8": pa.int8(), "int16": pa.int16(), "int32": pa.int32(), "int64": pa.int64(),
    "uint8": pa.uint8(), "uint16": pa.uint16(), "uint32": pa.uint32(), "uint64": pa.uint64(),
}  # fmt: skip


def store(root: Path, ids: pa.Array, *, shards: int = 3, **changes: Any) -> str:
    """A code store of N rows, in an order that is not that of their ids."""
    order = np.random.default_rng(3).permutation(N)
    ids = ids.take(pa.array(order))
    for part, rows in enumerate(np.array_split(np.arange(N), shards)):
        at = slice(int(rows[0]), int(rows[-1]) + 1)
        shard(root / "features" / f"p{part}.parquet", X[at], ids[at], LABELS[at])
    shard(root / "queries.parquet", Q, pa.array([f"q{row}" for row in range(5)]), LABELS[:5])
    encode(root, str(root / "features"), **changes)
    return str(root / "codes")


def answers(root: Path, codes: str, base: int) -> dict[str, Any]:
    """What every verb that shows ids says of the store."""
    queries = str(root / "queries.parquet")
    names = root / "ids.txt"
    names.write_text("\n".join(str(base + row) for row in range(0, 60, 7)))

    def found(output: str, **settings: Any) -> list[Any]:
        table = search(codes, root / output, top_k=9, **settings)
        return table.select(["query_id", "id", "score"]).to_pylist()

    features = [str(root / "features")]
    pairs = api.duplicates(
        DuplicatesJob(codes=codes, threshold=0.1, output=str(root / "pairs"), where=ALONE)
    )
    index = raypq.open(codes)
    api.export_faiss(ExportFaissJob(codes=codes, output=str(root / "x.faiss")))
    import faiss

    exported = faiss.read_index(str(root / "x.faiss"))  # which owns what is reached from it
    return {
        "search": found("s1", queries=[queries]),
        "where": found("s2", queries=[queries], filter=f"id < {base + 50} AND id != {base + 3}"),
        "in": found("s3", queries=[queries], filter=f"id IN ({base + 8}, {base + 9}, 2.5)"),
        "ids": found("s4", queries=[queries], ids=str(names)),
        "query_ids": found("s5", query_ids=str(names), distance="sdc"),
        "rerank": found("s6", queries=[queries], rerank=20, features=features),
        "pairs": rows_of(str(root / "pairs"), pairs).to_pylist(),
        "index": [index.ids.tolist(), index.search(Q, 9)[1].tolist()],
        "faiss": faiss.vector_to_array(faiss.downcast_index(exported).id_map).tolist(),
        "evaluate": {
            key: figure
            for key, figure in api.evaluate_retrieval(
                RetrievalJob(
                    codes=codes, queries=[queries], features=features, at=(1, 10), where=ALONE
                )
            ).items()
            if "@" in key or key == "map"
        },
    }


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a store of int64 ids says."""
    root = tmp_path_factory.mktemp("int64")
    return answers(root, store(root, pa.array(range(N), pa.int64())), 0)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "int64"])
def test_every_integer_type_is_int64_in_every_verb(plain, tmp_path, kind):
    codes = store(tmp_path, pa.array(range(N), pa.int64()).cast(KINDS[kind]))
    assert rows_of(codes).schema.field("id").type == pa.int64()
    assert {receipt.ids for receipt in snapshot.read(codes).shards} == {"int64"}
    assert answers(tmp_path, codes, 0) == plain


@pytest.mark.parametrize("kind", ["int64", "uint64"])
def test_ids_of_nineteen_digits_in_every_verb(plain, tmp_path, kind):
    def moved(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: moved(one) for key, one in value.items()}
        if isinstance(value, list):
            return [moved(one) for one in value]
        return value + SNOWFLAKE if isinstance(value, int) else value

    ids = pa.array(range(SNOWFLAKE, SNOWFLAKE + N), pa.int64()).cast(KINDS[kind])
    assert answers(tmp_path, store(tmp_path, ids), SNOWFLAKE) == moved(plain)


def test_uint64_beyond_int64_is_refused_by_name(tmp_path):
    ids = pa.array([*range(N - 1), 2**63 + 5], pa.uint64())
    with pytest.raises(JobError, match=rf"'id', row \d+: .*found {2**63 + 5}.*VARCHAR"):
        store(tmp_path, ids)


NUMBERS, TEXTS = pa.array(range(40)), pa.array([f"t{row}" for row in range(40)])
MIXED = {
    "numbers first": [NUMBERS, TEXTS, TEXTS],
    "text first": [TEXTS, NUMBERS, NUMBERS],
    "after an empty shard": [TEXTS[:0], NUMBERS, TEXTS],
    "narrow numbers last": [TEXTS, TEXTS, NUMBERS.cast(pa.int32())],
}


def mixed(root: Path, shards: list[pa.Array]) -> str:
    for part, ids in enumerate(shards):
        shard(root / "features" / f"p{part}.parquet", vectors(len(ids), part), ids)
    return str(root / "features")


@pytest.mark.parametrize("case", MIXED)
def test_ids_of_two_types_are_refused_where_they_are_encoded(tmp_path, case):
    features = mixed(tmp_path, MIXED[case])
    with pytest.raises(JobError, match=r"ids of one type in a store: \w+, as in .*p[01].*CAST"):
        encode(tmp_path, features)
    assert not snapshot.versions(str(tmp_path / "codes"))
    version = encode(tmp_path, features, on_bad_shard="quarantine")
    kinds = [str(ids.type) for ids in MIXED[case] if len(ids)]
    assert len(version.quarantined) == sum(kind != kinds[0] for kind in kinds)
    assert len({receipt.ids for receipt in version.shards if receipt.rows}) == 1
    search(tmp_path / "codes", tmp_path / "out", queries=[features + "/p1.parquet"], top_k=3)


def reindex(root: Path, **changes: Any) -> dict[str, Any]:
    job = ReindexJob(
        model=model_at(root), features=[str(root / "features")], codes=str(root / "codes"),
        where=ALONE, **changes,
    )  # fmt: skip
    return api.reindex(job)


@pytest.mark.parametrize(("first", "second"), [(NUMBERS, TEXTS), (TEXTS, NUMBERS)])
@pytest.mark.parametrize("how", ["reindex", "encode", "append"])
def test_a_shard_of_another_type_that_comes_later_is_refused(tmp_path, first, second, how):
    features = mixed(tmp_path, [first])
    encode(tmp_path, features)
    shard(tmp_path / "features" / "p1.parquet", vectors(40, 5), second)
    run = {
        "reindex": lambda: reindex(tmp_path),
        "append": lambda: encode(tmp_path, f"{features}/p1.parquet", append=True),
        "encode": lambda: encode(tmp_path, features),
    }[how]
    with pytest.raises(JobError, match=r"p1\.parquet.*ids of one type in a store.*as in .*codes"):
        run()
    assert snapshot.versions(str(tmp_path / "codes")) == [1]


def test_all_shards_written_anew_may_change_the_type(tmp_path):
    features = mixed(tmp_path, [NUMBERS, NUMBERS.cast(pa.int16())])
    encode(tmp_path, features)
    mixed(tmp_path, [TEXTS, TEXTS])
    encode(tmp_path, features)
    assert rows_of(tmp_path / "codes").schema.field("id").type == pa.string()


@pytest.mark.parametrize("ids", [NUMBERS, TEXTS])
def test_a_store_of_empty_shards_takes_the_type_of_the_first_rows(tmp_path, ids):
    features = mixed(tmp_path, [TEXTS[:0], NUMBERS[:0]])
    encode(tmp_path, features)
    shard(tmp_path / "features" / "p2.parquet", vectors(40), ids)
    reindex(tmp_path)
    query = [f"{features}/p2.parquet"]
    found = search(tmp_path / "codes", tmp_path / "out", queries=query, top_k=3)
    assert found.schema.field("id").type.value_type == ids.type
    assert raypq.open(str(tmp_path / "codes")).ids.tolist() == sorted(ids.to_pylist())


def as_of_old(store: Path) -> None:
    """Receipts as an earlier version wrote them, which did not name the type of ids."""
    for name in (store / "snapshots").iterdir():
        document = json.loads(name.read_text())
        document["summary"].pop("ids", None)
        for receipt in document["shards"]:
            receipt.pop("ids", None)
        name.write_text(json.dumps(document))


@pytest.mark.parametrize("kind", [pa.int32(), pa.uint64()])
def test_a_store_of_an_earlier_version_keeps_narrow_integers_as_text(tmp_path, kind):
    texts = pa.array([str(row) for row in range(40)])
    features = mixed(tmp_path, [texts, texts[:0]])
    encode(tmp_path, features)
    as_of_old(tmp_path / "codes")
    assert reindex(tmp_path)["nothing_to_do"]
    shard(tmp_path / "features" / "p2.parquet", vectors(9, 5), pa.array(range(100, 109), kind))
    assert reindex(tmp_path)["codes"]["images"] == 49
    table = rows_of(tmp_path / "codes")
    assert table.schema.field("id").type == pa.string()
    assert table["id"].to_pylist()[-9:] == [str(row) for row in range(100, 109)]
    # And so it stays, shard after shard, also where the model is another one.
    shard(tmp_path / "features" / "p3.parquet", vectors(9, 6), pa.array(range(200, 209), kind))
    assert reindex(tmp_path)["codes"]["images"] == 58
    assert {one.ids for one in snapshot.read(str(tmp_path / "codes")).shards} == {None}
    # int64 was never text.
    shard(tmp_path / "features" / "p4.parquet", vectors(9, 6), pa.array(range(300, 309)))
    with pytest.raises(JobError, match=r"p4\.parquet.*ids of one type in a store: string"):
        reindex(tmp_path)
    # What is asked of it stays what it was.
    (tmp_path / "features" / "p4.parquet").unlink()
    codes, queries = str(tmp_path / "codes"), [f"{features}/p2.parquet"]
    found = search(codes, tmp_path / "o1", queries=queries, filter="id IN (104, '7', 8)", top_k=9)
    assert sorted(found["id"][0].as_py()) == ["104", "7", "8"]
    found = search(codes, tmp_path / "o2", queries=queries, rerank=58, features=[features], top_k=1)
    assert found["id"].to_pylist() == [[str(row)] for row in range(100, 109)]
    assert found["query_id"].to_pylist() == list(range(100, 109))
    with pytest.raises(ConfigError, match="'id' holds text"):
        search(codes, tmp_path / "o3", queries=queries, filter="id < 8")


def test_a_store_of_an_earlier_version_with_int64_takes_every_integer(tmp_path):
    encode(tmp_path, mixed(tmp_path, [NUMBERS]))
    as_of_old(tmp_path / "codes")
    shard(tmp_path / "features" / "p1.parquet", vectors(9, 5), pa.array(range(9), pa.uint16()))
    reindex(tmp_path)
    assert rows_of(tmp_path / "codes").schema.field("id").type == pa.int64()


def test_a_store_of_an_earlier_version_of_both_types_is_named(tmp_path):
    for name, ids in (("one", NUMBERS), ("two", TEXTS)):
        encode(tmp_path / name, mixed(tmp_path / name, [ids]))
    one, two = (snapshot.read(str(tmp_path / name / "codes")).shards[0] for name in ("one", "two"))
    data = tmp_path / "one" / "codes"
    (data / two.path).write_bytes((tmp_path / "two" / "codes" / two.path).read_bytes())
    receipts = [
        one.model_copy(update={"ids": None}),
        two.model_copy(update={"ids": None, "shard": "p1"}),
    ]
    snapshot.commit(
        str(data), kind="codes", run_id="x", expected=[one.shard, "p1"], receipts=receipts
    )
    queries = shard(tmp_path / "q.parquet", Q, pa.array(range(5)))
    jobs = [
        lambda: search(data, tmp_path / "out", queries=[queries], top_k=3),
        lambda: raypq.open(str(data)),
        lambda: api.export_faiss(ExportFaissJob(codes=str(data), output=str(tmp_path / "x"))),
        lambda: api.duplicates(
            DuplicatesJob(codes=str(data), threshold=0, output=str(tmp_path / "p"), where=ALONE)
        ),
    ]
    for job in jobs:
        with pytest.raises(RaypqError, match=r"ids of one type in a store, int64.*found string"):
            job()


def test_queries_and_predictions_have_one_type_each(tmp_path):
    encode(tmp_path, mixed(tmp_path / "c", [NUMBERS]))
    queries = mixed(tmp_path / "q", [NUMBERS.cast(pa.uint8())[:0], NUMBERS.cast(pa.uint8()), TEXTS])
    with pytest.raises(JobError, match=r"p2\.parquet.*ids of one type in a store: int64"):
        search(tmp_path / "codes", tmp_path / "out", queries=[queries], top_k=3)
    Path(queries, "p2.parquet").unlink()
    found = search(tmp_path / "codes", tmp_path / "out", queries=[queries], top_k=3)
    assert found.schema.field("query_id").type == pa.int64()


def test_classified_features_have_ids_of_one_type(home):
    first = home.shard(0)
    table = pq.read_table(first)
    numbers = pa.array(range(len(table)), pa.int32())
    pq.write_table(table.set_column(0, "id", numbers), first)
    with pytest.raises(JobError, match=r"ids of one type in a store: int64, as in .*part-00000"):
        home.classify(codes=None, model=home("old"), features=[home("features")])
    pq.write_table(table.set_column(0, "id", numbers.cast(pa.string())), first)
    version = home.classify(codes=None, model=home("old"), features=[home("features")])
    assert {receipt.ids for receipt in version.shards} == {"string"}


def test_ids_that_are_not_stored_are_named(tmp_path, caplog):
    codes = store(tmp_path, pa.array(range(N)))
    queries = [str(tmp_path / "queries.parquet")]
    names = tmp_path / "some.txt"
    names.write_bytes(b"\xef\xbb\xbf 3 \r\n+5\r\n\r\n007\r\n3\r\n5000\r\n6000\r\n7000\r\n")
    found = search(codes, tmp_path / "out", queries=queries, ids=str(names), top_k=9)
    assert {name for line in found["id"].to_pylist() for name in line} == {3, 5, 7}
    said = "3 of 7 ids are not in"
    assert said in caplog.text
    assert "5000, 6000, 7000" in caplog.text
    summary = snapshot.read(str(tmp_path / "out")).summary
    assert said in summary["ids_not_stored"]
    found = search(codes, tmp_path / "o2", query_ids=str(names), distance="sdc", top_k=2)
    assert found["query_id"].to_pylist() == [3, 5, 7, 3, 5000, 6000, 7000]
    assert [len(line) for line in found["id"].to_pylist()] == [2, 2, 2, 2, 0, 0, 0]
    (said,) = snapshot.read(str(tmp_path / "o2")).summary["refused"]
    assert "3 of 7 ids are not in" in said
    names.write_text("5000\n")
    found = search(codes, tmp_path / "o3", queries=queries, ids=str(names), top_k=9)
    assert found["id"].to_pylist() == [[]] * 5
    names.write_text("3\nx\n")
    for settings in (
        {"queries": queries, "ids": str(names)},
        {"query_ids": str(names), "distance": "sdc"},
    ):
        with pytest.raises(InputError, match=r"some\.txt, line 2: expected an int64 id.*'x'"):
            search(codes, tmp_path / "o4", top_k=2, **settings)


def test_filters_of_another_type_than_the_store(tmp_path):
    queries = [shard(tmp_path / "q.parquet", Q, pa.array(range(5)))]
    for name, ids, text in (("n", NUMBERS, "id = '5'"), ("t", TEXTS, "id < 5")):
        encode(tmp_path, mixed(tmp_path / name, [ids]), output=f"codes-{name}")
        with pytest.raises(ConfigError, match="column 'id' holds"):
            search(tmp_path / f"codes-{name}", tmp_path / "o", queries=queries, filter=text)
