"""FAISS beside raypq: equal ids on the same codes, and stores and models that go out and in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import raypq
from raypq.cli import main
from raypq.config import ClusterSettings, EncodeJob, Metric
from raypq.data import arrays
from raypq.methods import registry
from raypq.methods.base import Model
from raypq.methods.opq import OPQModel, OPQSettings
from raypq.methods.pq import PQModel, PQSettings
from raypq.methods.support.linear_model import LinearModel

faiss = pytest.importorskip("faiss")
faiss.omp_set_num_threads(1)
N, T, DX, D, M = 700, 40, 24, 16, 4


def command(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(main, list(arguments))
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def store(root: Path, model: Model, X: np.ndarray, ids: Any, parts: int = 3) -> str:
    """A code store of several shards."""
    (root / "features").mkdir(parents=True)
    rows = pa.table({"id": ids, "feature": arrays.fixed_list(X)})
    for part, some in enumerate(np.array_split(np.arange(len(X)), parts)):
        pq.write_table(rows.take(some), root / "features" / f"p{part}.parquet")
    model.save(str(root / "model"))
    raypq.encode(
        EncodeJob(
            model=str(root / "model"),
            features=[str(root / "features")],
            output=str(root / "codes"),
            where=ClusterSettings(cluster="none", workers=1),
        )
    )
    return str(root / "codes")


def linear(how: str, K: int, metric: Metric, *, project: bool) -> LinearModel:
    rng = np.random.default_rng(5)
    width = D if project else DX
    tensors = {"C": 0.4 * rng.standard_normal((M, K, width // M)).astype(np.float32)}
    if how.startswith("zscore"):
        tensors["mean"] = rng.standard_normal(DX).astype(np.float32)
        tensors["inverse_std"] = rng.uniform(0.5, 2, DX).astype(np.float32)
    shared: dict[str, Any] = {"M": M, "K": K, "metric": metric, "normalise": how}
    if not project:
        return PQModel(settings=PQSettings(**shared), tensors=tensors, dx=DX)
    tensors["P"] = np.linalg.qr(rng.standard_normal((DX, D)))[0].T.astype(np.float32)
    return OPQModel(settings=OPQSettings(D=D, **shared), tensors=tensors, dx=DX)


def canonical(index: Any, Q: np.ndarray, k: int, sign: int) -> tuple[np.ndarray, np.ndarray]:
    """FAISS's answer with ties by id: it ranks all rows, equal ones as its heap left them."""
    score, ids = index.search(Q, index.ntotal)
    order = np.lexsort((ids, sign * score), axis=1)[:, :k]
    return np.take_along_axis(score, order, 1), np.take_along_axis(ids, order, 1)


def peer(C: np.ndarray, B: np.ndarray, ids: np.ndarray, metric: Metric) -> Any:
    kind = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
    index = faiss.IndexPQ(C.shape[0] * C.shape[2], C.shape[0], 8, kind)
    faiss.copy_array_to_vector(C.ravel(), index.pq.centroids)
    index.is_trained = True
    named = faiss.IndexIDMap(index)
    named.add_sa_codes(B, ids)
    return named


def adversarial(name: str) -> dict[str, np.ndarray]:
    """Codebooks, rows and queries of whole numbers: sums are exact in float32, ties are ties."""
    rng = np.random.default_rng(8)

    def whole(low: int, high: int, *shape: int) -> np.ndarray:
        return rng.integers(low, high, shape).astype(np.float32)

    C, X, Q = whole(-9, 9, M, 256, 4), whole(-9, 9, N, D), whole(-9, 9, T, D)
    if name == "one code":
        X[:] = X[0]
    if name == "few codes":
        X = X[rng.integers(0, 7, N)]
    if name == "next to each other":  # differences of 1 on top of distances of millions
        C[1:] = whole(0, 2, M - 1, 256, 4)
        C[0] = 700 + whole(0, 2, 256, 4)
        X, Q = np.tile(C[:, 0].ravel(), (N, 1)) + whole(0, 2, N, D), whole(0, 2, T, D)
    if name == "one part is all":  # a table whose other parts drown in its rounding
        C[2] *= 100
        X[:, 8:12] *= 100
    if name == "equal words":
        C[:, 1:] = C[:, :1]
    if name == "queries at zero":
        Q[:] = 0
    return {"C": C, "X": X, "Q": Q}


ADVERSARIES = (
    "random", "one code", "few codes", "next to each other", "one part is all", "equal words",
    "queries at zero",
)  # fmt: skip


@pytest.mark.parametrize("metric", ["l2", "dot"])
@pytest.mark.parametrize("name", ADVERSARIES)
def test_ids_are_those_of_faiss(tmp_path: Path, name: str, metric: Metric) -> None:
    case = adversarial(name)
    settings = PQSettings(M=M, K=256, metric=metric)
    model = PQModel(settings=settings, tensors={"C": case["C"]}, dx=D)
    ids = np.random.default_rng(1).permutation(N).astype(np.int64) * 3
    codes = store(tmp_path, model, case["X"], ids)
    index = peer(model.C, model.encode(case["X"]), ids, metric)
    for k in (1, 10, 100):
        found, names = raypq.open(codes).search(case["Q"], k)
        score, wanted = canonical(index, case["Q"], k, 1 if metric == "l2" else -1)
        np.testing.assert_array_equal(names, wanted)
        np.testing.assert_array_equal(found, score)


@pytest.mark.parametrize("metric", ["l2", "dot"])
@pytest.mark.parametrize("project", [False, True])
@pytest.mark.parametrize(
    ("how", "K"), [("none", 256), ("unit", 16), ("zscore", 100), ("zscore-unit", 7)]
)
def test_export(tmp_path: Path, how: str, K: int, project: bool, metric: Metric) -> None:
    rng = np.random.default_rng(3)
    X, Q = rng.standard_normal((N, DX), np.float32), rng.standard_normal((T, DX), np.float32)
    ids = rng.permutation(N) + 10**12
    model = linear(how, K, metric, project=project)
    codes = store(tmp_path / "s", model, X, ids)
    told = command("export-faiss", "--codes", codes, "--output", str(tmp_path / "i.faiss"))
    assert (told["rows"], told["ids"]) == (N, None)
    index = faiss.read_index(str(tmp_path / "i.faiss"))
    found, names = raypq.open(codes).search(Q, 10)
    score, wanted = canonical(index, Q, 10, 1 if metric == "l2" else -1)
    np.testing.assert_allclose(found, score, rtol=1e-4, atol=1e-5)
    # FAISS transforms and adds in float32: where an id differs, so near are the two scores.
    assert (names == wanted).mean() > 0.98
    exact = dict(_scores_of(codes, Q))
    for q, rank in np.argwhere(names != wanted):
        ours, theirs = exact[q, names[q, rank]], exact[q, wanted[q, rank]]
        assert ours == pytest.approx(theirs, rel=1e-5)
    # New vectors get the same codes there.
    inner = faiss.downcast_index(faiss.downcast_index(index).index)
    B = inner.sa_encode(X[:50])
    from raypq.data.codes import unpack

    # Copies of the last codeword fill FAISS's codebook up; which of equals it names is its choice.
    assert (model.encode(X[:50]) == np.minimum(unpack(B, model.M, K), K - 1)).mean() > 0.99

    # And in again: the same codes, up to rounding in the transforms.
    command("import-faiss", str(tmp_path / "i.faiss"), "--output", str(tmp_path / "in"))
    again = registry.load(str(tmp_path / "in"))
    assert (again.metric, again.dx, again.D) == (metric, DX, model.D)
    assert (again.encode(X) == model.encode(X)).mean() > 0.99
    np.testing.assert_allclose(again.embed(Q), model.embed(Q), rtol=1e-3, atol=1e-4)


def _scores_of(codes: str, Q: np.ndarray) -> list[tuple[tuple[int, int], float]]:
    score, names = raypq.open(codes).search(Q, N)
    return [((q, name), s) for q in range(T) for name, s in zip(names[q], score[q], strict=True)]


def test_export_of_string_ids(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    X = rng.standard_normal((N, DX)).astype(np.float32)
    ids = [f"i{i}" for i in rng.permutation(N)]
    model = linear("none", 256, "l2", project=True)
    codes = store(tmp_path / "s", model, X, ids)
    out = str(tmp_path / "i.faiss")
    told = command("export-faiss", "--codes", codes, "--output", out)
    names = np.array(pq.read_table(told["ids"])["id"].to_pylist(), object)
    _, rows = faiss.read_index(out).search(X[:T], 1)
    np.testing.assert_array_equal(names[rows], raypq.open(codes).search(X[:T], 1)[1])


@pytest.mark.parametrize("spec", ["PQ4x6", "OPQ4_16,PQ4x4", "PCAR16,PQ4x4", "L2norm,PQ4x4"])
def test_import_of_what_faiss_trained(tmp_path: Path, spec: str) -> None:
    rng = np.random.default_rng(3)
    X = (rng.standard_normal((2500, DX)) + 1).astype(np.float32)
    index = faiss.index_factory(DX, spec)
    index.train(X)
    index.add(X[:10])
    faiss.write_index(index, str(tmp_path / "i.faiss"))
    told = command("import-faiss", str(tmp_path / "i.faiss"), "--output", str(tmp_path / "model"))
    model = registry.load(str(tmp_path / "model"))
    assert told["fingerprint"] == model.fingerprint
    assert told["method"] == ("opq" if "16" in spec else "pq")
    U, inner = X, index
    if "," in spec:
        (step,) = [index.chain.at(i) for i in range(index.chain.size())]
        U, inner = faiss.downcast_VectorTransform(step).apply(X), faiss.downcast_index(index.index)
    np.testing.assert_allclose(model.embed(X), U, rtol=1e-3, atol=1e-4)
    decoded = inner.sa_decode(inner.sa_encode(U))
    assert np.isclose(model.decode(model.encode(X)), decoded, atol=1e-4).mean() > 0.99


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("Flat", "expected an IndexPQ, or transforms before one, found IndexFlatL2"),
        ("PQ4x4fs", "found IndexPQFastScan"),
        ("PQ2x10", "at most 8 bits a sub-codebook, found 10"),
        ("PCA16,L2norm,PQ4x4", "found PCAMatrix → NormalizationTransform"),
        ("untrained", "expected a trained index"),
        ("garbage", "expected a FAISS index"),
        ("nothing", "found no such file"),
    ],
)
def test_import_refuses(tmp_path: Path, spec: str, message: str) -> None:
    path = tmp_path / "i.faiss"
    if spec == "garbage":
        path.write_bytes(b"garbage" * 9)
    elif spec != "nothing":
        index = faiss.index_factory(DX, "PQ4x6" if spec == "untrained" else spec)
        if spec.startswith("PCA"):
            index.train(np.random.default_rng(0).standard_normal((700, DX), np.float32))
        index.is_trained = spec != "untrained"
        faiss.write_index(index, str(path))
    done = CliRunner().invoke(main, ["import-faiss", str(path), "--output", str(tmp_path / "m")])
    assert done.exit_code == 1
    assert message in done.stderr
    assert not (tmp_path / "m").exists()


def test_export_and_import_refuse(tmp_path: Path) -> None:
    X = np.random.default_rng(0).standard_normal((50, DX)).astype(np.float32)
    codes = store(tmp_path / "s", linear("none", 16, "cosine", project=False), X, np.arange(50))
    out = str(tmp_path / "i.faiss")
    done = CliRunner().invoke(main, ["export-faiss", "--codes", codes, "--output", out])
    assert (done.exit_code, "name l2 or dot" in done.stderr) == (2, True)
    command("export-faiss", "--codes", codes, "--metric", "dot", "--output", out)
    into = str(tmp_path / "s" / "model")
    done = CliRunner().invoke(main, ["import-faiss", out, "--output", into])
    assert (done.exit_code, "holds a model already" in done.stderr) == (2, True)
