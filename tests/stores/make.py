"""Makes the stores below ``tests/stores/<commit>/``: what a release of raypq left on a disk.

Run with the code of that commit, in a checkout of its own::

    git worktree add /tmp/old d7bb8bc && python -m venv /tmp/old/.venv
    /tmp/old/.venv/bin/pip install -e /tmp/old
    /tmp/old/.venv/bin/python tests/stores/make.py tests/stores/d7bb8bc

``tests/integration/stores/test_old_stores.py`` copies the result and runs the code of today on it.
The folder in which the stores were made stands as ``@ROOT@`` in every JSON file, and every input
file was last changed at ``CHANGED``; the test puts both back. What is where:

* ``features/``, ``classes.parquet``, ``queries/``: the inputs; ``odd/``: the same features under
  folders with odd names, and one shard that holds NaN
* ``model/``: a small ``pqzsl``; ``unlike/``: the same settings with another seed
* ``codes/``, ``predictions/``, ``found/``, ``pairs/``: encode, classify, search and duplicates with
  default settings
* ``predictions-calibrated/``, ``predictions-unseen/``, ``found-filtered/``: with other settings
* ``predictions-exact/``: classify from features
* ``cut/``: an encode that was killed just before its commit: data and journal, no version
* ``night-codes/``, ``night-predictions/``: a night of reindex over ``odd/``, bad shards quarantined
* ``rolled-codes/``, ``rolled-predictions/``: the same and another night, which moved some shards to
  the model ``unlike``; the others wait
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

CHANGED = 1_700_000_000  # seconds since 1970
ROOT = "@ROOT@"
DX, DA, CLASSES, SEEN, ROWS = 8, 4, 6, 4, 24
ODD = ("date=2026-01-01/part-0", "date=2026-01-01/a--b", "möwen & co/part 0")


def main(target: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        inputs(root)
        stores(root)
        for path in root.rglob("*.json"):
            text = path.read_text("utf-8").replace(str(root), ROOT)
            path.write_text(text.replace(f' on {socket.gethostname()}"', ' on a-host"'), "utf-8")
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(root, target)


def inputs(root: Path) -> None:
    rng = np.random.default_rng(5)
    E = rng.standard_normal((CLASSES, DA)).astype(np.float32)
    centres = np.tanh(E @ rng.standard_normal((DA, DX))) * 2
    names = np.array([f"c{t}" for t in range(CLASSES)])

    def rows(name: str, *, classes: int = CLASSES, bad: bool = False) -> None:
        y = rng.integers(0, classes, ROWS)
        X = (centres[y] + 0.4 * rng.standard_normal((ROWS, DX))).astype(np.float32)
        if bad:
            X[3, 2] = np.nan
        ids = [f"{name}-{row}" for row in range(ROWS)]
        write(root / f"{name}.parquet", id=ids, feature=vectors(X), label=names[y])

    write(
        root / "classes.parquet",
        class_id=names,
        embedding=vectors(E),
        seen=np.arange(CLASSES) < SEEN,
    )
    rows("train/part-0", classes=SEEN)
    for part in range(3):
        rows(f"features/part-{part}")
    for name in ODD:
        rows(f"odd/{name}")
    rows("odd/bad/part-0", bad=True)
    rows("queries/q")


def stores(root: Path) -> None:
    import raypq
    from raypq.config import (
        ClassifyJob,
        ClusterSettings,
        DuplicatesJob,
        EncodeJob,
        ReindexJob,
        SearchJob,
        TrainJob,
    )
    from raypq.data.store import snapshot

    def at(name: str) -> str:
        return str(root / name)

    where = ClusterSettings(cluster="none", workers=1)
    classes, features = at("classes.parquet"), [at("features")]
    for name, seed in (("model", 0), ("unlike", 1)):
        raypq.train(
            TrainJob(
                method="pqzsl",
                features=[at("train")],
                classes=classes,
                output=at(name),
                settings={"M": 2, "K": 16, "iterations": 2, "polish": 1, "seed": seed},
                where=where,
            )
        )
    encode = EncodeJob(model=at("model"), features=features, output=at("codes"), where=where)
    raypq.encode(encode)

    def classify(output: str, **more: Any) -> None:
        given = {"codes": at("codes")} | more
        raypq.classify(ClassifyJob(classes=classes, output=at(output), where=where, **given))

    classify("predictions")
    classify("predictions-calibrated", calibration=0.25)
    classify("predictions-unseen", candidates="unseen", top_k=2)
    classify("predictions-exact", codes=None, features=features, model=at("model"))

    def search(output: str, **more: Any) -> None:
        job = SearchJob(
            codes=at("codes"), queries=[at("queries")], output=at(output), where=where, **more
        )
        raypq.search(job)

    search("found")
    search("found-filtered", top_k=3, filter="label = 'c1'", distance="sdc", metric="l2")
    raypq.duplicates(
        DuplicatesJob(codes=at("codes"), threshold=0.99, output=at("pairs"), where=where)
    )

    commit = snapshot.commit
    snapshot.commit = stop
    try:
        raypq.encode(encode.model_copy(update={"output": at("cut")}))
    except KeyboardInterrupt:
        pass
    finally:
        snapshot.commit = commit

    for model, name in (("model", "night"), ("model", "rolled"), ("unlike", "rolled")):
        job = ReindexJob(
            model=at(model),
            features=[at("odd")],
            codes=at(f"{name}-codes"),
            classify=[{"classes": classes, "output": at(f"{name}-predictions")}],
            rollout=0.34,
            on_bad_shard="quarantine",
            where=where,
        )
        raypq.reindex(job)


def stop(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def vectors(X: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(X.reshape(-1)), X.shape[1])


def write(path: Path, **columns: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    os.utime(path, (CHANGED, CHANGED))


def placed(root: Path) -> None:
    """Puts the times and the folder back into a copy of the stores at ``root``."""
    for path in root.rglob("*.json"):
        path.write_text(path.read_text("utf-8").replace(ROOT, str(root)), "utf-8")
    for name in ("features", "odd", "queries"):
        for path in (root / name).rglob("*.parquet"):
            os.utime(path, (CHANGED, CHANGED))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
