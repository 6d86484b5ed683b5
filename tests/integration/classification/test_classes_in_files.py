"""Classes whose tables are in files: predictions as from memory, and how often files are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypq import api
from raypq.config import ClassifyJob, ClusterSettings, EncodeJob, TrainJob
from raypq.data import arrays
from raypq.errors import InputError, JobError
from raypq.kernels.stored_tables import RowFile
from raypq.stages.classification import class_groups, scorers
from raypq.stages.classification.class_groups import STORED_CODE_ROWS, stored_code_rows

N, DX, T = 600, 16, 50
MANY = 33_000  # classes: more than are tried before the work starts, or decided for all images
WHERE = ClusterSettings(cluster="none", workers=1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Codes of 600 images in two shards, and 50 classes in their space, some of them equal."""
    root = tmp_path_factory.mktemp("stored")
    rng = np.random.default_rng(0)
    X = rng.standard_normal((N, DX)).astype(np.float32)
    (root / "features").mkdir()
    for part in range(2):
        rows = slice(part * N // 2, (part + 1) * N // 2)
        columns = {"id": np.arange(N)[rows], "feature": arrays.fixed_list(X[rows])}
        pq.write_table(pa.table(columns), root / "features" / f"p{part}.parquet")
    E = rng.standard_normal((T, DX)).astype(np.float32)
    E[10:20] = E[:10]
    write_classes(root / "classes.parquet", E)
    features, model = [str(root / "features")], str(root / "model")
    settings = {"K": 16, "M": 4, "normalise": "none"}
    api.train(
        TrainJob(method="pq", features=features, output=model, settings=settings, where=WHERE)
    )
    api.encode(EncodeJob(model=model, features=features, output=str(root / "codes"), where=WHERE))
    return root


def write_classes(path: Path, E: np.ndarray) -> None:
    columns = {
        "class_id": [f"c{number}" for number in range(len(E))],
        "embedding": arrays.fixed_list(E),
        "bias": np.arange(len(E)) % 3 / 10.0,
        "seen": np.arange(len(E)) % 2 == 0,
    }
    pq.write_table(pa.table(columns), path)


def classified(store: Path, output: Path, **settings: Any) -> pa.Table:
    settings = {"classes": str(store / "classes.parquet"), "where": WHERE, **settings}
    version = api.classify(ClassifyJob(codes=str(store / "codes"), output=str(output), **settings))
    tables = [pq.read_table(output / receipt.path) for receipt in version.shards]
    return pa.concat_tables(table.replace_schema_metadata() for table in tables)


@pytest.mark.parametrize("metric", ["dot", "cosine", "l2"])
@pytest.mark.parametrize("top_k", [1, 5, T, 2 * T])
def test_predictions_are_those_from_memory(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: str, top_k: int
) -> None:
    settings = {"metric": metric, "top_k": top_k, "calibration": 0.2}
    wanted = classified(store, tmp_path / "whole", **settings)
    monkeypatch.setattr(scorers, "WHOLE_BYTES", 0)
    monkeypatch.setattr(class_groups, "STORED_CODE_ROWS", 70)
    assert classified(store, tmp_path / "stored", **settings).equals(wanted)


@pytest.mark.parametrize("threshold", [None, 0.15])
def test_classes_are_read_once_for_many_images(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threshold: float | None
) -> None:
    """Also where few images are decided at once, since each may have many accepted classes."""
    E = np.random.default_rng(1).standard_normal((MANY, DX)).astype(np.float32)
    write_classes(tmp_path / "classes.parquet", E)
    settings = {
        "classes": str(tmp_path / "classes.parquet"),
        "metric": "cosine",
        "logit_scale": 10.0,
        "threshold": threshold,
    }
    wanted = classified(store, tmp_path / "whole", **settings)
    monkeypatch.setattr(scorers, "WHOLE_BYTES", 0)
    reads = []
    read = RowFile.read
    monkeypatch.setattr(RowFile, "read", lambda *args: reads.append(args) or read(*args))
    found = classified(store, tmp_path / "stored", **settings)
    for name in wanted.column_names:
        if name in ("id", "class_id", "score"):
            assert found[name].equals(wanted[name])
    np.testing.assert_allclose(
        np.stack(found["probability"].to_numpy()),
        np.stack(wanted["probability"].to_numpy()),
        rtol=1e-5,
    )
    assert len(reads) == 2 * 2 * 2, "each group twice, for the top k and the softmax, a shard"


def test_codes_scanned_at_once_are_fewer_where_their_results_are_large() -> None:
    assert stored_code_rows(10, 0) == STORED_CODE_ROWS
    for k, D in ((1000, 0), (10, 1000), (10_000_000, 0)):
        rows = stored_code_rows(k, D)
        assert 1 <= rows < STORED_CODE_ROWS
        assert rows == 1 or rows * (12 * k + 4 * D) <= 1 << 28


@pytest.mark.parametrize("at", [40, MANY - 1])
def test_a_class_out_of_range_is_no_fault_of_a_shard(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Of many classes, only the first ones are tried before the work starts."""
    E = np.ones((MANY, DX), np.float32)
    E[at] = 1e25
    write_classes(tmp_path / "classes.parquet", E)
    monkeypatch.setattr(scorers, "WHOLE_BYTES", 0)
    error = InputError if at == 40 else JobError
    with pytest.raises(error, match=r"classes\.parquet, prototypes.*no longer") as caught:
        classified(
            store,
            tmp_path / "out",
            classes=str(tmp_path / "classes.parquet"),
            metric="dot",
            on_bad_shard="quarantine",
        )
    if isinstance(caught.value, JobError):
        assert not any(failure.bad_input for failure in caught.value.failures)
