"""A code store of many shards whose files are only named, and nights over it.

``named_store.py make FOLDER SHARDS`` writes a model, a version of that many shards and an index of
the names of their files, of which one exists. ``named_store.py night FOLDER [NEW]`` runs a night;
its listings come from the index, with so many shards more. It prints the time and memory of the
process. What the listings of a real storage cost is not in these figures.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

START = time.monotonic()

import tinystore  # noqa: E402 - after the start of the clock

from raypq.config import ReindexJob  # noqa: E402
from raypq.data.storage import Listed, Shard, Storage, stem_of, use_storage  # noqa: E402
from raypq.data.store import snapshot, sources  # noqa: E402
from raypq.data.store.manifest import COLUMNS  # noqa: E402
from raypq.data.store.receipts import Receipts  # noqa: E402
from raypq.stages.nightly import reindex  # noqa: E402
from raypq.stages.nightly.source_diff import encode_job  # noqa: E402
from raypq.stages.stores.work_id import encode_work  # noqa: E402

MODIFIED = 1_700_000_000_000_000_000


def job_of(root: Path) -> ReindexJob:
    where = {"cluster": "none", "workers": 1}
    return ReindexJob.parse(
        {
            "model": str(root / "model"), "features": [str(root / "features")],
            "codes": str(root / "codes"), "where": where,
            "duplicate_ids": "ignore",  # of files that are only named
        }
    )  # fmt: skip


def uri_of(root: Path, number: int) -> str:
    return f"{root}/features/date=2026-{number % 12 + 1:02d}/part-{number:07d}.parquet"


def make(root: Path, shards: int) -> None:
    """Writes the model, the store and the index."""
    model = tinystore.quantizer()
    model.save(str(root / "model"))
    tinystore.shard(Path(uri_of(root, 0)), tinystore.vectors(4), pa.array(["a", "b", "c", "d"]))
    columns = columns_of(root, shards, encode_work(model.fingerprint, encode_job(job_of(root))))
    columns = columns.set_column(
        columns.schema.get_field_index("model"), "model",
        pa.array([model.fingerprint] * shards, COLUMNS["model"]),
    )  # fmt: skip
    receipts = Receipts.of_columns(columns.take(pc.sort_indices(columns.column("shard"))))
    snapshot.commit(
        str(root / "codes"), kind="codes", run_id="named", receipts=receipts,
        expected=receipts.column("shard").to_pylist(),
        summary={"fingerprint": model.fingerprint, "M": tinystore.M, "K": tinystore.K},
    )  # fmt: skip
    pq.write_table(columns.select(["path", "bytes", "source_uri", "source_size"]), root / "index")


def columns_of(root: Path, shards: int, work: str) -> pa.Table:
    """Receipts of shards, in the order of their sources."""
    rng = np.random.default_rng(shards)
    uris = [uri_of(root, number) for number in range(shards)]
    stems = [stem_of(uri) for uri in uris]
    rows = rng.integers(4500, 5500, shards)
    digests = rng.bytes(32 * shards)
    values: dict[str, Any] = {
        "shard": stems,
        "path": [
            f"data/{stem}.{digests[32 * at : 32 * at + 16].hex()}.parquet"
            for at, stem in enumerate(stems)
        ],
        "bytes": rows * 52,
        "rows": rows,
        "sha256": [digests[32 * at : 32 * at + 32] for at in range(shards)],
        "model": ["m"] * shards,
        "work": [work] * shards,
        "source_uri": uris,
        "source_size": rows * 8200,
        "source_modified": [str(MODIFIED + number) for number in range(shards)],
        "source_sha256": pa.nulls(shards, COLUMNS["source_sha256"]),
        "ids": ["string"] * shards,
        "stats": _stats(rng, shards),
    }
    return pa.table({name: pa.array(values[name], kind) for name, kind in COLUMNS.items()})


def _stats(rng: np.random.Generator, shards: int) -> pa.Array:
    def numbers(scale: float) -> pa.Array:
        return pa.array([float(f"{value:.6g}") for value in rng.random(shards) * scale])

    kind = COLUMNS["stats"]
    spread = kind.field("error").type
    error, norm = (
        pa.StructArray.from_arrays([numbers(1) for _ in spread], fields=list(spread))
        for _ in range(2)
    )
    sample = pa.array(np.full(shards, 4096))
    return pa.StructArray.from_arrays([sample, error, norm, sample, numbers(8)], fields=list(kind))


class NamedFiles(Storage):
    """Lists the data files of the index."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def list_files(self, uri: str) -> dict[str, Listed]:
        files = super().list_files(uri)
        if uri == str(self._root / "codes" / "data"):
            for paths, sizes in _batches(self._root, "path", "bytes"):
                names = (path.removeprefix("data/") for path in paths)
                files |= {name: Listed(size, 0.0) for name, size in zip(names, sizes, strict=True)}
        return files


def _batches(root: Path, *names: str) -> Iterator[list[list[Any]]]:
    for batch in pq.ParquetFile(root / "index").iter_batches(columns=[*names]):
        yield [batch.column(name).to_pylist() for name in names]


def listed(root: Path, new: int) -> list[Shard]:
    """The shards of the index, and new ones, which are links to the file that exists."""
    shards = []
    for uris, sizes in _batches(root, "source_uri", "source_size"):
        for uri, size in zip(uris, sizes, strict=True):
            modified = str(MODIFIED + len(shards))
            shards.append(
                Shard(index=len(shards), uri=uri, stem=stem_of(uri), size=size, modified=modified)
            )
    for number in range(new):
        path = Path(uri_of(root, len(shards)))
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            table = pq.read_table(uri_of(root, 0))
            ids = pa.array([f"{number}-{row}" for row in range(len(table))])
            pq.write_table(table.set_column(0, "id", ids), path)
        shards.append(
            Shard(index=len(shards), uri=str(path), stem=stem_of(str(path)),
                  size=path.stat().st_size, modified=str(path.stat().st_mtime_ns))
        )  # fmt: skip
    return shards


def night(root: Path, new: int = 0) -> dict[str, Any]:
    """A night whose listings come from the index; what it did, its seconds and MiB."""
    from raypq.execution.local import LocalExecutor

    sources.list_features = lambda *_: listed(root, new)  # type: ignore[attr-defined]
    with use_storage(NamedFiles(root)):
        done = reindex.reindex(job_of(root), LocalExecutor(1))
    return {
        "nothing_to_do": done["nothing_to_do"],
        "shards": done["shards"],
        "seconds": round(time.monotonic() - START, 1),
        "cpu_seconds": round(time.process_time(), 1),
        "MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }


if __name__ == "__main__":
    root = Path(os.path.abspath(sys.argv[2]))
    if sys.argv[1] == "make":
        make(root, int(sys.argv[3]))
    else:
        print(json.dumps(night(root, *map(int, sys.argv[3:]))))
