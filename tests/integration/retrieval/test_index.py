"""``raypq.open``: the array surface, beside faiss on the same codebooks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raypq
from raypq.config import ClusterSettings, EncodeJob, Metric
from raypq.data import arrays
from raypq.errors import ConfigError, InputError
from raypq.methods.pq import PQModel, PQSettings

ALONE = ClusterSettings(cluster="none", workers=1)
M, K, D = 4, 256, 16


def store(root: Path, X: np.ndarray, ids: pa.Array, metric: Metric = "l2") -> PQModel:
    rng = np.random.default_rng(1)
    C = rng.standard_normal((M, K, D // M)).astype(np.float32)
    model = PQModel(settings=PQSettings(M=M, K=K, metric=metric), tensors={"C": C}, dx=D)
    model.save(str(root / "model"))
    pq.write_table(pa.table({"id": ids, "feature": arrays.fixed_list(X)}), root / "f.parquet")
    raypq.encode(
        EncodeJob(
            model=str(root / "model"),
            features=[str(root / "f.parquet")],
            output=str(root / "codes"),
            where=ALONE,
        )
    )
    return model


@pytest.fixture
def X() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((900, D)).astype(np.float32)


@pytest.fixture
def Q() -> np.ndarray:
    return np.random.default_rng(2).standard_normal((40, D)).astype(np.float32)


@pytest.mark.parametrize("metric", ["l2", "dot"])
def test_equals_faiss(tmp_path: Path, X: np.ndarray, Q: np.ndarray, metric: Metric) -> None:
    faiss = pytest.importorskip("faiss")
    model = store(tmp_path, X, pa.array(np.arange(900)), metric)
    kind = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
    peer = faiss.IndexPQ(D, M, 8, kind)
    faiss.copy_array_to_vector(model.C.ravel(), peer.pq.centroids)
    peer.is_trained = True
    peer.add(X)
    index = raypq.open(str(tmp_path / "codes"))
    assert (index.ntotal, index.d) == (900, D)
    D1, I1 = index.search(Q, 10)
    D2, I2 = peer.search(Q, 10)
    assert (D1.dtype, I1.dtype, D1.shape, I1.shape) == (D2.dtype, I2.dtype, D2.shape, I2.shape)
    np.testing.assert_allclose(D1, D2, rtol=1e-5, atol=1e-5)
    assert (I1 == I2).mean() > 0.99  # equal codes are in faiss's order there, by id here
    differ = I1 != I2
    np.testing.assert_allclose(D1[differ], D2[differ], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("strings", [False, True])
def test_what_is_missing_is_padded(
    tmp_path: Path, X: np.ndarray, Q: np.ndarray, metric: Metric, strings: bool
) -> None:
    ids = pa.array([f"i{i}" for i in range(5)]) if strings else pa.array([7, 3, 9, 1, 5])
    store(tmp_path, X[:5], ids, metric)
    found, names = raypq.open(str(tmp_path / "codes")).search(Q, 8)
    assert np.isfinite(found[:, :5]).all()
    assert (found[:, 5:] == (np.inf if metric == "l2" else -np.inf)).all()
    if strings:
        assert names.dtype == object
        assert all(name is None for name in names[:, 5:].ravel())
    else:
        assert names.dtype == np.int64
        assert (names[:, 5:] == -1).all()
    order = np.diff(found[:, :5], axis=1)
    assert (order >= 0).all() if metric == "l2" else (order <= 0).all()


def test_symmetric_distance_of_a_row_to_itself(tmp_path: Path, X: np.ndarray) -> None:
    model = store(tmp_path, X, pa.array(np.arange(900)))
    index = raypq.open(str(tmp_path / "codes"))
    found, names = index.search(X[:30], 1, distance="sdc")
    same = (model.encode(X)[names[:, 0]] == model.encode(X[:30])).all(axis=1)
    assert same.all()
    np.testing.assert_allclose(found[:, 0], 0, atol=1e-5)
    np.testing.assert_array_equal(
        model.decode(model.encode(X)), index.model.decode(model.encode(X))
    )


def test_bad_queries(tmp_path: Path, X: np.ndarray) -> None:
    store(tmp_path, X, pa.array(np.arange(900)))
    index = raypq.open(str(tmp_path / "codes"))
    X[3, 3] = np.inf
    for bad, message in (
        (X[:, :5], r"an array \[n, 16\], found \(900, 5\)"),
        (X[0], r"found the shape \[16\]"),
        (X, "row 3"),
        (np.zeros((2, D), int), "int64"),
    ):
        with pytest.raises(InputError, match=message), np.errstate(invalid="ignore"):
            index.search(bad, 3)
    with pytest.raises(ConfigError, match="at least 1"):
        index.search(X[:2], 0)
    with pytest.raises(InputError, match="no such store"):
        raypq.open(str(tmp_path / "nothing"))


def test_answers_are_those_of_the_command(tmp_path: Path, X: np.ndarray, Q: np.ndarray) -> None:
    model = store(tmp_path, X, pa.array(np.arange(900)))
    pq.write_table(
        pa.table({"id": np.arange(len(Q)), "feature": arrays.fixed_list(Q)}), tmp_path / "q.parquet"
    )
    version = raypq.search(
        raypq.SearchJob(
            codes=str(tmp_path / "codes"),
            queries=[str(tmp_path / "q.parquet")],
            top_k=7,
            output=str(tmp_path / "out"),
            where=ALONE,
        )
    )
    (receipt,) = version.shards
    table = pq.read_table(tmp_path / "out" / receipt.path)
    found, names = raypq.open(str(tmp_path / "codes")).search(Q.astype(np.float64), 7)
    assert table["id"].to_pylist() == names.tolist()
    np.testing.assert_array_equal(np.array(table["score"].to_pylist(), np.float32), found)
    B = raypq.load_model(str(tmp_path / "model")).encode(X)
    assert (B.shape, B.dtype) == ((900, M), np.uint8)
    decoded = model.decode(B)
    assert (decoded.shape, decoded.dtype) == ((900, D), np.float32)
