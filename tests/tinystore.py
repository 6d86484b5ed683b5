"""What the tests of types and of empty shards share: a quantizer made by hand, and small shards."""

from __future__ import annotations

import base64
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
from raypq.data.store.snapshot import Snapshot
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


def encrypted(path: Path, table: pa.Table, *columns: str, plain_footer: bool = True) -> Path:
    """A file of the table with some columns encrypted, as Arrow and Spark write it."""
    encryption = pytest.importorskip("pyarrow.parquet.encryption")

    class Kms(encryption.KmsClient):  # type: ignore[misc,name-defined]
        def __init__(self, config: Any) -> None:
            super().__init__()
            self.keys = config.custom_kms_conf

        def wrap_key(self, key: bytes, master: str) -> bytes:
            return base64.b64encode(self.keys[master].encode() + key)

        def unwrap_key(self, wrapped: bytes, master: str) -> bytes:
            return base64.b64decode(wrapped)[16:]

    factory = encryption.CryptoFactory(Kms)
    keys = encryption.KmsConnectionConfig(custom_kms_conf={"foot": "0" * 16, "col": "1" * 16})
    how = encryption.EncryptionConfiguration(
        footer_key="foot", column_keys={"col": list(columns)}, plaintext_footer=plain_footer,
        data_key_length_bits=128,
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    properties = factory.file_encryption_properties(keys, how)
    with pq.ParquetWriter(path, table.schema, encryption_properties=properties) as writer:
        writer.write_table(table, row_group_size=25)
    return path
