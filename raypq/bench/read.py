"""Reading features: raypq's checked batches, and a plain pyarrow loop."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raypq.bench.harness import Contender, Goal, Result, rounds
from raypq.config import Columns, RepackJob
from raypq.data import arrays
from raypq.data.features import batch_rows, read_batches
from raypq.data.store.sources import open_sources
from raypq.execution.local import LocalExecutor
from raypq.stages.preparation.repack import repack

ROWS, DX = 131_072, 512


def run(threads: int) -> Iterator[Result]:
    """fixed_size_list as most tools write it, and fixed_size_binary as ``repack`` does."""
    del threads  # one reader is one thread
    with tempfile.TemporaryDirectory(prefix="raypq-bench-") as folder:
        plain, fast = Path(folder) / "list", Path(folder) / "binary"
        write_list(plain, rows=ROWS, dx=DX)
        repack(RepackJob(features=[str(plain)], output=str(fast)), LocalExecutor())
        for name, where in (("fixed_size_list", plain), ("fixed_size_binary", fast)):
            gigabytes = ROWS * DX * 4 / 1e9
            lines = rounds(
                [
                    Contender(
                        name="raypq read", run=partial(_ours, where), work=gigabytes, ours=True
                    ),
                    Contender(name="pyarrow loop", run=partial(bare, where), work=gigabytes),
                ]
            )
            result = Result(
                bench="read", case=f"{ROWS:,} × {DX} float32, {name}", unit="GB/s", lines=lines
            )
            yield result.with_goals([Goal(ours="raypq read", peer="pyarrow loop", at_least=0.8)])


def write_list(folder: Path, *, rows: int, dx: int, shards: int = 4) -> None:
    """Random features in ``shards`` files."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for shard, part in enumerate(np.array_split(np.arange(rows), shards)):
        table = pa.table(
            {
                "id": pa.array(part),
                "feature": arrays.fixed_list(rng.standard_normal((len(part), dx), np.float32)),
            }
        )
        pq.write_table(
            table,
            folder / f"part-{shard:05d}.parquet",
            compression="none",
            use_dictionary=False,
            write_page_checksum=True,
        )


def _ours(folder: Path) -> None:
    store = open_sources([str(folder)])
    for shard in store.shards:
        for _ in read_batches(shard, Columns(), width=None):
            pass


def bare(folder: Path) -> None:
    """The shortest loop that has every vector in memory once, checksums verified as ours are."""
    for path in sorted(folder.glob("*.parquet")):
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            width = file.schema_arrow.field("feature").type
            rows = batch_rows(getattr(width, "list_size", 0) or width.byte_width // 4)
            for batch in file.iter_batches(batch_size=rows):
                batch.column("feature")
