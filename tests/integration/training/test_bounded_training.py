"""Codebooks from a sample of the rows: one pass over all of them, and the same model whatever the
workers, their memory, and the shards' sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypq import api, io_counters
from raypq.config import ClusterSettings, TrainJob
from raypq.data import arrays
from raypq.errors import JobError
from raypq.methods.base import Model

N, DX, L, DA = 40_000, 24, 12, 8
SAMPLED = {"K": 16, "M": 4, "rows_per_codeword": 64, "iterations": 4}
METHODS: dict[str, dict[str, Any]] = {
    "pq": {},
    "opq": {"polish": 2},
    "vq": {"M": 1},
    "pqzsl": {"polish": 3},
    "pqzsl-scores": {"polish": 3, "axes": "scores"},
    "eszsl": {},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40,000 rows in 9 shards of unlike sizes, and a class table."""
    root = tmp_path_factory.mktemp("bounded")
    rng = np.random.default_rng(3)
    A = rng.standard_normal((L, DA)).astype(np.float32)
    y = rng.integers(L, size=N)
    X = np.tanh(A @ rng.standard_normal((DA, DX)))[y] + 0.5 * rng.standard_normal((N, DX))
    (root / "features").mkdir()
    edges = [0, 17_000, 17_500, 17_501, 20_000, 25_000, 25_000, 33_000, 39_000, N]
    for part in range(9):
        at = slice(edges[part], edges[part + 1])
        columns = {
            "id": np.arange(N)[at],
            "label": [f"c{label}" for label in y[at]],
            "feature": arrays.fixed_list(X[at].astype(np.float32)),
        }
        pq.write_table(pa.table(columns), root / "features" / f"p{part}.parquet")
    ids = [f"c{label}" for label in range(L)]
    classes = pa.table({"class_id": ids, "embedding": arrays.fixed_list(A)})
    pq.write_table(classes, root / "classes.parquet")
    return root


@pytest.fixture
def train(store: Path, tmp_path: Path) -> Callable[..., Model]:
    def train(name: str, *, workers: int = 1, **changes: Any) -> Model:
        settings = {**SAMPLED, **METHODS[name], **changes.pop("settings", {})}
        method = name.removesuffix("-scores")
        needs_classes = method in ("pqzsl", "eszsl")
        return api.train(
            TrainJob(
                method=method,
                features=[str(store / "features")],
                classes=str(store / "classes.parquet") if needs_classes else None,
                output=str(tmp_path / "model"),
                settings=settings,
                overwrite=True,
                calibrate=False,
                where=ClusterSettings(cluster="none", workers=workers),
                **changes,
            )
        ).model

    return train


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("normalise", ["unit", "zscore"])
def test_the_same_model_for_any_workers_and_memory(
    train: Callable[..., Model], name: str, normalise: str
) -> None:
    settings = {"normalise": normalise}
    found = {
        train(name, settings=settings).fingerprint,
        train(name, settings=settings, workers=3).fingerprint,
        train(name, settings=settings, cache_bytes=0).fingerprint,
        train(name, settings=settings, cache_bytes=40_000).fingerprint,
    }
    assert len(found) == 1


@pytest.mark.parametrize(("normalise", "times"), [("unit", 1), ("zscore", 1)])
def test_rows_are_read_once(train: Callable[..., Model], normalise: str, times: int) -> None:
    """And again those of a few shards, for the baseline of drift."""
    before = io_counters.read()
    train("pqzsl", settings={"normalise": normalise})
    assert io_counters.read().since(before).images == pytest.approx(2 * N, rel=1e-3)


def test_a_sample_in_little_memory_is_read_again(train: Callable[..., Model]) -> None:
    before = io_counters.read()
    model = train("pq", cache_bytes=0)
    passes = len(model.record["history"])
    assert io_counters.read().since(before).images == pytest.approx(N * (1 + passes + 1), rel=1e-3)


def test_all_rows_on_request(train: Callable[..., Model]) -> None:
    of_all, sampled = train("pq", settings={"rows_per_codeword": 0}), train("pq")
    assert of_all.fingerprint != sampled.fingerprint
    wanted, found = (model.record["history"][-1]["objective"] for model in (of_all, sampled))
    assert abs(found / wanted - 1) < 0.1
    assert train("pq", settings={"rows_per_codeword": 2500}).C.tobytes() == of_all.C.tobytes()


def test_a_bad_row_anywhere_is_found(store: Path, tmp_path: Path) -> None:
    """Although it is in no sample: the first pass sees every row."""
    folder = tmp_path / "features"
    folder.mkdir()
    for file in (store / "features").iterdir():
        table = pq.read_table(file)
        if file.name == "p6.parquet":
            X = np.stack(table["feature"].to_numpy())
            X[4321, 5] = np.nan
            table = table.set_column(2, "feature", arrays.fixed_list(X))
        pq.write_table(table, folder / file.name)
    job = TrainJob(
        method="pq",
        features=[str(folder)],
        output=str(tmp_path / "model"),
        settings=SAMPLED,
        where=ClusterSettings(cluster="none", workers=2),
    )
    with pytest.raises(JobError, match=r"p6\.parquet, .*row 4321"):
        api.train(job)
    model = api.train(job.model_copy(update={"on_bad_shard": "quarantine"})).model
    (quarantined,) = model.record["quarantined"]
    assert "p6.parquet" in quarantined
    assert "row 4321" in quarantined
    assert model.record["images"] == N - 8000


def distortion(model: Model, X: np.ndarray) -> float:
    U = model.embed(X)
    residual = U - model.decode(model.encode(X))
    return float(np.mean((residual * residual).sum(axis=1)))


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("pq", {"M": 16, "K": 32}),
        ("vq", {"K": 32}),
        pytest.param("opq", {"M": 16, "K": 32}, marks=pytest.mark.slow),
        pytest.param("pq", {"M": 32, "K": 64}, marks=pytest.mark.slow),
    ],
)
def test_distortion_of_real_features_is_that_of_all_rows(
    data_root: Path, tmp_path: Path, method: str, settings: dict[str, Any]
) -> None:
    """CIFAR-10: 50,000 rows, of which the default sample is 16,384 (opq: 32,768) for K = 32."""
    features = data_root / "cifar10" / "features" / "train"
    if not features.is_dir():
        pytest.skip(f"no CIFAR-10 features at {features}")
    X = np.concatenate(
        [
            np.stack(pq.read_table(file)["feature"].to_numpy())
            for file in sorted(features.glob("*.parquet"))
        ]
    ).astype(np.float32)
    found = {}
    for name, changes in (("sample", {}), ("all", {"rows_per_codeword": 0})):
        model = api.train(
            TrainJob(
                method=method,
                features=[str(features)],
                output=str(tmp_path / name),
                settings={**settings, **changes},
                where=ClusterSettings(cluster="none", workers=2),
            )
        ).model
        found[name] = distortion(model, X)
    assert found["all"] != found["sample"]
    assert found["sample"] <= 1.01 * found["all"]
