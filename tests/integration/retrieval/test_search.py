"""Search over stored codes: exact, whatever the shards, the workers and the ties."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypq import api
from raypq.config import ClusterSettings, EncodeJob, SearchJob
from raypq.data import arrays
from raypq.data.storage import join
from raypq.data.store import snapshot
from raypq.errors import ConfigError, InputError, JobError, ModelError
from raypq.kernels import reference
from raypq.methods.base import Model
from raypq.methods.pq import PQModel, PQSettings

DX, M, K = 12, 4, 16
ALONE = ClusterSettings(cluster="none", workers=1)
METRICS = ("l2", "cosine", "dot")


def quantizer(seed: int = 0, **settings: Any) -> PQModel:
    """Codewords on a coarse grid: many codes are equal, many distances too."""
    C = np.round(np.random.default_rng(seed).standard_normal((M, K, DX // M)) * 2) / 2
    return PQModel(
        settings=PQSettings(M=M, K=K, **settings), tensors={"C": C.astype(np.float32)}, dx=DX
    )


@dataclass
class Stored:
    """A code store and what is in it."""

    uri: str
    model: Model
    X: np.ndarray
    ids: np.ndarray
    labels: np.ndarray
    features: str


Make = Callable[..., Stored]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make(
        name: str,
        sizes: list[int],
        *,
        numbers: bool = False,
        seed: int = 0,
        model: Model | None = None,
        distinct: int = 40,
    ) -> Stored:
        """Rows in an order that is not that of their ids; ``distinct`` different vectors."""
        rng = np.random.default_rng(seed)
        n = sum(sizes)
        X = np.round(rng.standard_normal((distinct, DX)) * 2)[rng.integers(0, distinct, n)] / 2
        X = X.astype(np.float32)
        number = rng.permutation(n)
        ids = number if numbers else np.array([f"i{i}" for i in number], dtype=object)
        labels = np.array([f"c{i % 3}" for i in range(n)], dtype=object)
        folder, start = tmp_path / name, 0
        (folder / "features").mkdir(parents=True)
        for part, size in enumerate(sizes):
            rows = slice(start, start + size)
            table = pa.table(
                {
                    "id": pa.array(ids[rows], pa.int64() if numbers else pa.string()),
                    "feature": arrays.fixed_list(X[rows]),
                    "label": pa.array(labels[rows], pa.string()),
                }
            )
            pq.write_table(table, folder / "features" / f"p{part:04d}.parquet", row_group_size=50)
            start += size
        model = model or quantizer()
        model.save(str(folder / "model"))
        uri = str(folder / "codes")
        features = str(folder / "features")
        api.encode(
            EncodeJob(model=str(folder / "model"), features=[features], output=uri, where=ALONE)
        )
        return Stored(uri, model, X, ids, labels, features)

    return make


@pytest.fixture
def queries(tmp_path: Path) -> tuple[str, np.ndarray]:
    Q = np.round(np.random.default_rng(9).standard_normal((23, DX)) * 2).astype(np.float32) / 2
    (tmp_path / "queries").mkdir()
    columns = {"id": [f"q{i}" for i in range(len(Q))], "feature": arrays.fixed_list(Q)}
    pq.write_table(pa.table(columns), tmp_path / "queries" / "q.parquet")
    return str(tmp_path / "queries"), Q


def run(stored: Stored, output: Path, where: ClusterSettings = ALONE, **settings: Any) -> pa.Table:
    version = api.search(SearchJob(codes=stored.uri, output=str(output), where=where, **settings))
    return pa.concat_tables(
        pq.read_table(join(str(output), receipt.path)) for receipt in version.shards
    )


def wanted(
    stored: Stored, V: np.ndarray, k: int, metric: Any, rows: np.ndarray | None = None
) -> tuple[list[list[Any]], np.ndarray]:
    """By brute force: every score, sorted by score and then by id."""
    rows = np.arange(len(stored.X)) if rows is None else rows
    B = stored.model.encode(stored.X[rows])
    tables = stored.model.tables(V, None, metric)
    score = reference.scores(stored.model.decode(B), tables.squared_norms(B), tables).T
    ids, found, scores = stored.ids[rows], [], []
    for line in score:
        order = sorted(range(len(ids)), key=lambda i: (-line[i], ids[i]))[:k]
        found.append([ids[i] for i in order])
        scores.append(line[order])
    score = np.array(scores)
    return found, np.maximum(-score, 0) if metric == "l2" else score


def check(table: pa.Table, expected: tuple[list[list[Any]], np.ndarray]) -> None:
    ids, scores = expected
    assert table.column("id").to_pylist() == [list(line) for line in ids]
    np.testing.assert_array_equal(np.array(table.column("score").to_pylist(), np.float32), scores)


@pytest.mark.parametrize("numbers", [False, True])
@pytest.mark.parametrize("metric", METRICS)
def test_equals_brute_force_with_ties_by_id(
    make: Make, queries: tuple[str, np.ndarray], tmp_path: Path, metric: Any, numbers: bool
) -> None:
    stored = make("s", [130, 1, 200, 70], numbers=numbers)
    for k in (1, 7, 60):
        table = run(stored, tmp_path / f"out{k}", queries=[queries[0]], top_k=k, metric=metric)
        assert table.column("query_id").to_pylist() == [f"q{i}" for i in range(23)]
        check(table, wanted(stored, queries[1], k, metric))


@pytest.mark.parametrize("distinct", [1, 2])
def test_all_codes_equal(
    make: Make, queries: tuple[str, np.ndarray], tmp_path: Path, distinct: int
) -> None:
    stored = make("s", [150, 150], distinct=distinct)
    table = run(stored, tmp_path / "out", queries=[queries[0]], top_k=10)
    check(table, wanted(stored, queries[1], 10, "l2"))


def test_symmetric_search_compresses_the_query(
    make: Make, queries: tuple[str, np.ndarray], tmp_path: Path
) -> None:
    stored = make("s", [100, 50])
    V = stored.model.decode(stored.model.encode(queries[1]))
    table = run(stored, tmp_path / "out", queries=[queries[0]], top_k=9, distance="sdc")
    check(table, wanted(stored, V, 9, "l2"))


@pytest.mark.parametrize("numbers", [False, True])
def test_stored_ids_as_queries(make: Make, tmp_path: Path, numbers: bool) -> None:
    stored = make("s", [60, 60], numbers=numbers)
    chosen = [3, 77, 15]
    absent = "424242"
    path = tmp_path / "ids.txt"
    path.write_text("\n".join([*(str(stored.ids[i]) for i in chosen), absent]) + "\n")
    table = run(stored, tmp_path / "out", query_ids=str(path), top_k=5, distance="sdc")
    assert table.column("id")[3].as_py() == []
    V = stored.model.decode(stored.model.encode(stored.X[chosen]))
    check(table.slice(0, 3), wanted(stored, V, 5, "l2"))


def test_one_answer_for_any_shards_and_workers(
    make: Make, queries: tuple[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raypq.stages.retrieval import code_blocks, query_rounds

    few, many = make("few", [311, 89]), make("many", [2] * 200)
    seen = set()
    for name, stored, workers, group, most in (
        ("a", few, 1, 1 << 19, 8192),
        ("b", few, 4, 1, 8192),
        ("c", many, 1, 30, 8192),
        ("d", many, 4, 1, 5),  # two hundred partial answers, rounds of five queries
    ):
        monkeypatch.setattr(code_blocks, "GROUP_ROWS", group)
        monkeypatch.setattr(query_rounds, "round_size", lambda k, most=most: most)
        monkeypatch.setattr("raypq.stages.retrieval.search.round_size", lambda k, most=most: most)
        where = ClusterSettings(cluster="none", workers=workers)
        out = tmp_path / name
        run(stored, out, where, queries=[queries[0]], top_k=20)
        version = snapshot.read(str(out))
        seen.add(tuple(receipt.sha256 for receipt in version.shards))
        left = [path.name for path in (out / "data").iterdir() if "partial" in path.name]
        assert not left
    assert len(seen) == 1


@pytest.mark.parametrize(("k", "R"), [(5, 40), (40, 40)])
def test_reranked_by_the_original_vectors(
    make: Make, queries: tuple[str, np.ndarray], tmp_path: Path, k: int, R: int
) -> None:
    rng = np.random.default_rng(4)
    stored = make("s", [120, 0, 300, 33])
    noisy = stored.X + 0.1 * rng.standard_normal(stored.X.shape).astype(np.float32)
    start = 0
    for part in sorted(Path(stored.features).iterdir()):  # the same codes, but vectors of their own
        table = pq.read_table(part)
        X = noisy[start : start + len(table)]
        start += len(table)
        pq.write_table(
            table.set_column(1, "feature", arrays.fixed_list(X)), part, row_group_size=50
        )
    stored.X = noisy
    api.encode(
        EncodeJob(
            model=str(Path(stored.uri).parent / "model"),
            features=[stored.features],
            output=stored.uri,
            where=ALONE,
        )
    )
    table = run(
        stored, tmp_path / "out", queries=[queries[0]], top_k=k, rerank=R,
        features=[stored.features],
    )  # fmt: skip
    candidates, _ = wanted(stored, queries[1], R, "l2")
    row = {name: i for i, name in enumerate(stored.ids)}
    for q, names in enumerate(candidates):
        rows = [row[name] for name in names]
        d = ((stored.X[rows].astype(np.float64) - queries[1][q]) ** 2).sum(axis=1)
        best = np.argsort(d)[:k]
        assert table.column("id")[q].as_py() == [names[i] for i in best]
        np.testing.assert_allclose(table.column("score")[q].as_py(), d[best], rtol=1e-5)


def test_filters(make: Make, queries: tuple[str, np.ndarray], tmp_path: Path) -> None:
    stored = make("s", [90, 110])
    some = tmp_path / "some.txt"
    some.write_text("\n".join(str(name) for name in stored.ids[:50]))
    for number, (settings, kept) in enumerate(
        (
            ({"filter": "label = 'c1'"}, stored.labels == "c1"),
            ({"filter": "NOT label IN ('c0', 'c1')"}, stored.labels == "c2"),
            ({"ids": str(some)}, np.arange(200) < 50),
            (
                {"ids": str(some), "filter": "label = 'c0' or label = 'c2'"},
                (np.arange(200) < 50) & (stored.labels != "c1"),
            ),
        )
    ):
        table = run(stored, tmp_path / str(number), queries=[queries[0]], top_k=6, **settings)
        check(table, wanted(stored, queries[1], 6, "l2", np.flatnonzero(kept)))
    table = run(
        stored, tmp_path / "none", queries=[queries[0]], top_k=6, filter="label = 'nothing'"
    )
    assert table.column("id").to_pylist() == [[]] * 23
    message = snapshot.read(str(tmp_path / "none")).summary["empty_filter"]
    assert message == f"filter \"label = 'nothing'\": no row of {stored.uri} passes"


def test_stored_queries_outside_of_the_filter(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups of shards that the filter skips may hold queries."""
    from raypq.stages.retrieval import code_blocks

    monkeypatch.setattr(code_blocks, "GROUP_ROWS", 30)
    stored = make("s", [30, 30, 30])
    (tmp_path / "some.txt").write_text("\n".join(str(name) for name in stored.ids[:10]))
    (tmp_path / "queries.txt").write_text("\n".join(str(name) for name in stored.ids[70:75]))
    how = {"query_ids": str(tmp_path / "queries.txt"), "distance": "sdc", "top_k": 10}
    table = run(stored, tmp_path / "out", ids=str(tmp_path / "some.txt"), **how)
    assert [set(ids) for ids in table.column("id").to_pylist()] == [set(stored.ids[:10])] * 5
    assert not snapshot.read(str(tmp_path / "out")).summary["refused"]


def test_a_second_run_has_nothing_to_do(
    make: Make, queries: tuple[str, np.ndarray], tmp_path: Path
) -> None:
    stored = make("s", [30, 30])
    job = SearchJob(
        codes=stored.uri, queries=[queries[0]], top_k=4, output=str(tmp_path / "o"), where=ALONE
    )
    assert api.search(job).version == 1
    assert api.search(job).version == 1
    assert api.search(job.model_copy(update={"top_k": 5})).version == 2


def test_more_than_there_is_gives_fewer(
    make: Make, queries: tuple[str, np.ndarray], tmp_path: Path
) -> None:
    stored = make("s", [7, 6])
    table = run(stored, tmp_path / "out", queries=[queries[0]], top_k=100)
    assert {len(ids) for ids in table.column("id").to_pylist()} == {13}


def test_a_bad_query_is_named_and_the_others_are_answered(
    make: Make, queries: tuple[str, np.ndarray], tmp_path: Path
) -> None:
    stored = make("s", [40])
    Q = queries[1].copy()
    Q[5, 2] = np.nan
    columns = {"id": [f"q{i}" for i in range(len(Q))], "feature": arrays.fixed_list(Q)}
    pq.write_table(pa.table(columns), tmp_path / "bad.parquet")
    table = run(stored, tmp_path / "out", queries=[str(tmp_path / "bad.parquet")], top_k=3)
    ids = wanted(stored, queries[1], 3, "l2")[0]
    assert table.column("id").to_pylist() == [[] if i == 5 else ids[i] for i in range(23)]
    (refused,) = snapshot.read(str(tmp_path / "out")).summary["refused"]
    assert "row 5 (id 'q5')" in refused


def test_duplicate_ids_are_all_found(
    make: Make, queries: tuple[str, np.ndarray], tmp_path: Path
) -> None:
    model = quantizer()
    stored = make("s", [20], model=model)
    features = Path(stored.features)
    table = pq.read_table(features / "p0000.parquet")
    pq.write_table(table, features / "p0001.parquet")
    twice = str(tmp_path / "twice")
    api.encode(
        EncodeJob(
            model=str(Path(stored.uri).parent / "model"),
            features=[str(features)],
            output=twice,
            where=ALONE,
        )
    )
    stored.uri = twice
    found = run(stored, tmp_path / "out", queries=[queries[0]], top_k=40).column("id")
    assert all(len(ids) == 40 and len(set(ids)) == 20 for ids in found.to_pylist())


def test_several_models_in_one_store(
    make: Make,
    queries: tuple[str, np.ndarray],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    one, two = make("one", [50]), make("two", [60], model=quantizer(5), seed=1)
    mixed = tmp_path / "mixed"
    receipts = []
    for stored in (one, two):
        (receipt,) = snapshot.read(stored.uri).shards
        (mixed / "data").mkdir(parents=True, exist_ok=True)
        (mixed / receipt.path).write_bytes(Path(join(stored.uri, receipt.path)).read_bytes())
        stem = f"{receipt.shard}-{len(receipts)}"
        receipts.append(receipt.model_copy(update={"shard": stem}))
        from raypq.stages.stores import model_store

        model_store.save(str(mixed), stored.model)
    snapshot.commit(
        str(mixed), kind="codes", run_id="x", expected=[r.shard for r in receipts],
        receipts=receipts,
    )  # fmt: skip
    one.uri = str(mixed)
    table = run(one, tmp_path / "out", queries=[queries[0]], top_k=8)
    assert "one metric space" in caplog.text
    parts = [wanted(stored, queries[1], 8, "l2") for stored in (one, two)]
    for q in range(23):
        both = sorted(
            (score, name)
            for ids, scores in parts
            for score, name in zip(scores[q], ids[q], strict=True)
        )[:8]
        assert table.column("id")[q].as_py() == [name for _, name in both]


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "neither": ({}, ConfigError, "either queries .* or query_ids"),
    "unknown column": ({"filter": "colour = 'red'"}, InputError, "a column 'colour'"),
    "bad filter": ({"filter": "label = x"}, ConfigError, "character 9: expected a value"),
    "no query file": ({"queries": ["/nowhere"]}, InputError, "no such file or folder"),
    "rerank alone": ({"rerank": 100}, ConfigError, "rerank and features"),
    "rerank too few": ({"rerank": 3, "features": ["x"], "top_k": 9}, ConfigError, "at least top_k"),
    "ids are symmetric": ({"queries": None, "query_ids": "x"}, ConfigError, "must be sdc"),
    "no ids file": ({"ids": "/nowhere"}, InputError, "one a line, found no such file"),
    "other features": ({"rerank": 200, "features": ["Q"]}, InputError, "that was encoded"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings_and_input(
    make: Make, queries: tuple[str, np.ndarray], tmp_path: Path, case: str
) -> None:
    stored = make("s", [20, 20])
    settings, error, message = BAD[case]
    settings = {"queries": [queries[0]], **settings} if case != "neither" else settings
    if settings.get("features") == ["Q"]:
        settings["features"] = [queries[0]]
    with pytest.raises(error, match=message):
        run(stored, tmp_path / "out", **settings)


def test_an_unknown_metric_or_distance(tmp_path: Path) -> None:
    for name, value in (("metric", "l1"), ("distance", "hamming")):
        values = {"codes": "c", "queries": ["q"], "output": "o", name: value}
        with pytest.raises(ConfigError, match=f"key '{name}': .*found '{value}'"):
            SearchJob.parse(values)


def test_models_that_do_not_fit_each_other(make: Make, tmp_path: Path) -> None:
    from raypq.stages.stores.code_store import metric_of

    models = {one.fingerprint: one for one in (quantizer(), quantizer(metric="dot"))}
    with pytest.raises(ConfigError, match="the models of the store have dot, l2; name one"):
        metric_of(models, None)
    assert metric_of(models, "cosine") == "cosine"
    stored = make("s", [20])
    quantizer(9).save(str(tmp_path / "other"))
    with pytest.raises(ModelError, match=r"codes of model \w+ only"):
        run(stored, tmp_path / "out", queries=["q"], model=str(tmp_path / "other"))


def test_queries_of_another_width(make: Make, tmp_path: Path) -> None:
    stored = make("s", [20])
    columns = {"id": ["a"], "feature": arrays.fixed_list(np.zeros((1, DX + 4), np.float32))}
    pq.write_table(pa.table(columns), tmp_path / "wide.parquet")
    with pytest.raises(JobError, match="width 12, found 16"):
        run(stored, tmp_path / "out", queries=[str(tmp_path / "wide.parquet")])


def test_an_empty_store(make: Make, queries: tuple[str, np.ndarray], tmp_path: Path) -> None:
    stored = make("s", [0])
    with pytest.raises(InputError, match="at least one code"):
        run(stored, tmp_path / "out", queries=[queries[0]])


def test_a_damaged_code_file_fails_the_search(
    make: Make, queries: tuple[str, np.ndarray], tmp_path: Path
) -> None:
    stored = make("s", [20, 20])
    receipt = snapshot.read(stored.uri).shards[1]
    path = Path(join(stored.uri, receipt.path))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises((JobError, InputError), match="p0001"):
        run(stored, tmp_path / "out", queries=[queries[0]])
    assert not snapshot.versions(str(tmp_path / "out"))


def test_the_command(make: Make, queries: tuple[str, np.ndarray], tmp_path: Path) -> None:
    from click.testing import CliRunner

    from raypq.cli import main

    stored = make("s", [20, 20])
    arguments = [
        "search", "--codes", stored.uri, "--queries", queries[0], "--top-k", "3",
        "--where", "label != 'c0'", "--output", str(tmp_path / "out"), "--cluster", "none",
    ]  # fmt: skip
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["queries"] == 23
