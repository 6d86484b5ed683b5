"""What the tests of types and of empty shards share: a quantizer made by hand, and small shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raypq import api
from raypq.config import ClusterSettings, EncodeJob, SearchJob
from raypq.data import arrays, snapshot
from raypq.data.snapshot import Snapshot
from raypq.data.storage import join
from raypq.methods.pq import PQModel, PQSettings

DX, M, K = 12, 4, 16
ALONE = ClusterSettings(cluster="none", workers=1)


def quantizer(seed: int = 0) -> PQModel:
    """A model without training; many of its distances are equal."""
    C = np.round(np.random.default_rng(seed).standard_normal((M, K, DX // M)) * 2) / 2
    return PQModel(settings=PQSettings(M=M, K=K), tensors={"C": C.astype(np.float32)}, dx=DX)


def vectors(n: int, seed: int = 0) -> np.ndarray:
    """Rows on a coarse grid [n, DX]."""
    return (np.round(np.random.default_rng(seed).standard_normal((n, DX)) * 2) / 2).astype("f4")


def shard(path: Path, X: np.ndarray, ids: Any, labels: Any = None) -> str:
    """One feature file; ``ids`` and ``labels`` are Arrow arrays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"id": ids, "feature": arrays.fixed_list(X)}
    pq.write_table(pa.table(columns if labels is None else columns | {"label": labels}), path)
    return str(path)


def model_at(root: Path) -> str:
    """The folder of the quantizer's model."""
    place = root / "model"
    if not place.exists():
        quantizer().save(str(place))
    return str(place)


def encode(root: Path, features: str, output: str = "codes", **changes: Any) -> Snapshot:
    """A version of the code store ``output`` below root."""
    job = EncodeJob(
        model=model_at(root), features=[features], output=str(root / output), where=ALONE, **changes
    )
    return api.encode(job)


def rows_of(store: Path | str, version: Snapshot | None = None) -> pa.Table:
    """All rows of a version, in the order of its shards; labels are null where a file has none."""
    version = version or snapshot.read(str(store))
    tables = [pq.read_table(join(str(store), one.path)) for one in version.shards]
    return pa.concat_tables(tables, promote_options="default")


def search(codes: Path | str, output: Path | str, **settings: Any) -> pa.Table:
    """The rows of a search's result."""
    job = SearchJob(codes=str(codes), output=str(output), where=ALONE, **settings)
    return rows_of(str(output), api.search(job))
