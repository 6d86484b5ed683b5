"""Encoding on a device: the codes of the CPU, with batches in flight and errors that name a row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from devices import DEVICE

from raypq import api
from raypq.config import ClusterSettings, EncodeJob
from raypq.data import arrays
from raypq.data.store.snapshot import Snapshot
from raypq.errors import JobError
from raypq.methods.pqzsl import PQZSLModel, PQZSLSettings

DX, M, K = 640, 8, 16
ROWS = 26_000  # several batches


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and one shard of float16 features of more rows than a batch has."""
    root = tmp_path_factory.mktemp("encoding")
    rng = np.random.default_rng(0)
    tensors = {
        "C": 0.1 * rng.standard_normal((M, K, 4), dtype=np.float32),
        "P": rng.standard_normal((4 * M, DX), dtype=np.float32),
    }
    model = PQZSLModel(
        settings=PQZSLSettings(M=M, K=K, normalise="unit"), tensors=tensors, dx=DX, da=None
    )
    model.save(str(root / "model"))
    (root / "rows").mkdir()
    X = rng.standard_normal((ROWS, DX), dtype=np.float32).astype(np.float16)
    table = pa.table({"id": np.arange(ROWS), "feature": arrays.fixed_list(X)})
    pq.write_table(table, root / "rows" / "0.parquet", row_group_size=10_000)
    return root


def encode(root: Path, features: Path, output: Path, device: str) -> Snapshot:
    """The code store of the features."""
    where = ClusterSettings(cluster="none", workers=1).model_copy(update={"device": device})
    job = EncodeJob(
        model=str(root / "model"), features=[str(features)], output=str(output), where=where
    )
    return api.encode(job)


def test_codes_are_those_of_the_cpu_in_the_same_order(root: Path, tmp_path: Path) -> None:
    stores = {}
    for device in (DEVICE, "cpu"):
        folder = tmp_path / device.replace(":", "-")
        snapshot = encode(root, root / "rows", folder, device)
        (shard,) = snapshot.shards
        stores[device] = pq.read_table(folder / shard.path)
    ours, theirs = stores[DEVICE], stores["cpu"]
    assert ours["id"].equals(theirs["id"])
    packed = [np.stack([np.frombuffer(row, np.uint8) for row in store["code"].to_pylist()])
              for store in (ours, theirs)]  # fmt: skip
    assert (packed[0] != packed[1]).mean() < 1e-3


def test_a_value_that_is_not_finite_is_named(root: Path, tmp_path: Path) -> None:
    features = pq.read_table(root / "rows" / "0.parquet").slice(0, 20_000)
    X = np.array(features["feature"].combine_chunks().flatten()).reshape(-1, DX)
    X[17_123, 5] = np.inf
    (tmp_path / "rows").mkdir()
    column = arrays.fixed_list(X)
    pq.write_table(features.set_column(1, "feature", column), tmp_path / "rows" / "0.parquet")
    with pytest.raises(JobError, match=r"row 17123 \(id 17123\).*finite values"):
        encode(root, tmp_path / "rows", tmp_path / "codes", DEVICE)
