"""Encode from every layout of features, side by side with repacked Parquet."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raypq import api
from raypq.bench import encode as encode_bench
from raypq.bench import read
from raypq.bench.harness import Contender, Goal, Result, rounds
from raypq.config import ClusterSettings, EncodeJob, RepackJob
from raypq.data import arrays
from raypq.errors import ConfigError
from raypq.execution.local import LocalExecutor
from raypq.optional_packages import require
from raypq.stages.preparation.repack import repack

_ROWS = 65_536
_PEER = "repacked Parquet"


def run(threads: int) -> Iterator[Result]:
    """Parquet as repacked (also to float16), as float16 lists, ``.npy`` of float32 and float16, and
    Lance."""
    with tempfile.TemporaryDirectory(prefix="raypq-bench-") as folder:
        yield _encode(Path(folder), threads)


def _encode(root: Path, threads: int) -> Result:
    model, _ = encode_bench.model()
    model.save(str(root / "model"))
    absent: list[str] = []
    stores = _stores(root, model.dx, absent)
    where = ClusterSettings(cluster="none", workers=1, threads=threads)
    outputs = count()

    def encode(store: Path) -> None:
        output = str(root / f"codes-{next(outputs)}")  # a second run into one would have no work
        api.encode(
            EncodeJob(model=str(root / "model"), features=[str(store)], output=output, where=where)
        )

    lines = rounds(
        [
            Contender(name=name, run=partial(encode, store), work=_ROWS, ours=name != _PEER)
            for name, store in stores.items()
        ]
    )
    result = Result(
        bench="layouts",
        case=f"encode {_ROWS:,} × {model.dx}, one worker of {threads} threads",
        unit="images/s",
        lines=lines,
        absent=absent,
    )
    return result.with_goals(
        [Goal(ours=line.name, peer=_PEER, at_least=0.9) for line in lines if line.ours]
    )


def _stores(root: Path, dx: int, absent: list[str]) -> dict[str, Path]:
    """The same features in each layout, by the names of their lines."""
    read.write_list(root / "list", rows=_ROWS, dx=dx)
    repack(RepackJob(features=[str(root / "list")], output=str(root / "repacked")), LocalExecutor())
    stores = {_PEER: root / "repacked", "repacked to float16": root / "repacked-half"}
    repack(
        RepackJob(
            features=[str(root / "list")], output=str(root / "repacked-half"), dtype="float16"
        ),
        LocalExecutor(),
    )
    for name, folder in (
        ("Parquet float16 lists", "half"),
        (".npy float32", "npy"),
        (".npy float16", "npy-half"),
        ("Lance", "lance"),
    ):
        stores[name] = root / folder
        stores[name].mkdir()
    try:
        lance = require("lance", extra="lance")
    except ConfigError:
        absent.append("Lance (pylance is not installed)")
        del stores["Lance"]
    for path in sorted((root / "list").glob("*.parquet")):
        table = pq.read_table(path)
        ids = table.select(["id"])
        X = arrays.matrix(arrays.whole(table.column("feature")), width=dx, where=str(path))
        half = X.astype(np.float16)
        _write(stores["Parquet float16 lists"] / path.name, ids, half)
        for name, values in ((".npy float32", X), (".npy float16", half)):
            np.save(stores[name] / f"{path.stem}.npy", values)
            pq.write_table(ids, stores[name] / path.name)
        if "Lance" in stores:
            lance.write_dataset(table, str(stores["Lance"] / f"{path.stem}.lance"))
    return stores


def _write(path: Path, ids: pa.Table, X: np.ndarray) -> None:
    table = ids.append_column("feature", arrays.fixed_list(X))
    pq.write_table(table, path, compression="none", use_dictionary=False)
