"""``raypq train pqzsl`` and ``raypq encode``, as commands, over generated features of ImageNet's
shape: 1,000 classes, 2,048 float16, shards of 10,000 rows."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raypq import console
from raypq.bench.harness import Line, Result
from raypq.data import synthetic
from raypq.errors import JobError, ShardFailure

_L, _DX, _DA, _M = 1000, 2048, 384, 50
_SHARD_ROWS, _GROUP_ROWS = 10_000, 2048


def run(threads: int, rows: int) -> Iterator[Result]:
    """Whole commands without Ray, each in a process of its own, with a worker for each thread.

    Raises:
        JobError: a command failed.
    """
    with tempfile.TemporaryDirectory(prefix="raypq-bench-") as folder:
        root = Path(folder)
        write(root, rows)
        where = ["--cluster", "none", "--workers", str(threads)]
        features = ["--features", str(root / "features")]
        model, codes = str(root / "model"), str(root / "codes")
        commands = {
            "raypq train pqzsl": ["train", "pqzsl", *features, "--classes",
                                  str(root / "classes.parquet"), "--set", f"M={_M}",
                                  "--output", model],
            "raypq encode": ["encode", "--model", model, *features, "--output", codes],
        }  # fmt: skip
        lines: list[Line] = []
        checks: dict[str, float] = {}
        for name, words in commands.items():
            seconds, peak = _timed([*words, *where])
            lines.append(Line(name=name, rate=rows / seconds, seconds=seconds, ours=True))
            checks[f"{name}, peak memory, GB"] = round(peak / 1e9, 2)
        yield Result(
            bench="train",
            case=f"pqzsl {rows:,} × {_DX} float16, L={_L} M={_M} K=256, whole commands, "
            f"{threads} workers",
            unit="images/s",
            sizes={"N": rows, "dx": _DX, "L": _L, "M": _M},
            lines=lines,
            checks=checks,
        )


def write(root: Path, rows: int) -> None:
    """Writes ``features`` and ``classes.parquet``, the same for the same number of rows."""
    rng = np.random.default_rng(0)
    classes = synthetic.SyntheticClasses.create(classes=_L, dx=_DX, da=_DA, rng=rng)
    classes.seen[:] = True
    synthetic.write_classes(root / "classes.parquet", classes)
    (root / "features").mkdir()
    y = rng.permutation(np.resize(np.arange(_L), rows))
    shards = np.array_split(np.arange(rows), -(-rows // _SHARD_ROWS))
    with console.progress(len(shards), "generate") as progress:
        for shard, at in enumerate(shards):
            X = classes.features(y[at], np.random.default_rng([1, shard])).astype(np.float16)
            values = pa.array(X.ravel())
            table = pa.table(
                {
                    "id": at,
                    "label": [f"g{index:05d}" for index in y[at]],
                    "feature": pa.FixedSizeListArray.from_arrays(values, _DX),
                }
            )
            pq.write_table(table, root / "features" / f"part-{shard:05d}.parquet",
                           row_group_size=_GROUP_ROWS, compression="none",
                           use_dictionary=["label"])  # fmt: skip
            progress.done(len(at))


def _timed(words: list[str]) -> tuple[float, int]:
    """Wall seconds and peak memory in bytes of a command."""
    start = time.perf_counter()
    process = subprocess.Popen(  # noqa: S603 - our own command
        [sys.executable, "-m", "raypq", *words, "--quiet"], stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        reason = f"exit code {process.returncode}"
        raise JobError([ShardFailure(shard=f"raypq {words[0]}", reason=reason)], 0)
    peak = usage.ru_maxrss if sys.platform == "darwin" else usage.ru_maxrss << 10
    return time.perf_counter() - start, peak
