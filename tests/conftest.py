"""What all tests share: tiny generated stores, a way to fit a method by hand, the real data."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3server import S3Server, reachable

from raypq.config import ClusterSettings, TrainJob
from raypq.data import arrays
from raypq.execution.local import LocalExecutor
from raypq.execution.run_record import RunRecord
from raypq.methods.base import Method, Model, ReductionMethod, Stats, TrainBatch, TrainingSetInfo
from raypq.methods.gradient import GradientMethod
from raypq.stages.training.dataset import TrainingPlan
from raypq.stages.training.gradient import fit_gradient

DX, DA, SEEN, UNSEEN = 16, 6, 8, 4


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--regenerate-golden",
        action="store_true",
        help="Train the stored models of tests/golden anew and write what they give.",
    )


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_auto_num_workers() -> int:
    """One process more than cores: tests that start Ray or a command wait half of their time."""
    return min(len(os.sched_getaffinity(0)) + 1, 8)


@pytest.fixture(autouse=True)
def _quiet_log() -> None:
    """The log as a library's is, whatever command line ran before, in a shared fixture too.

    The command line sets a level, and points the log at the stderr of its run, which a test
    runner closes.
    """
    log = logging.getLogger("raypq")
    log.handlers, log.propagate = [], True
    log.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The real data: ``shared/data`` beside the repository, or where RAYPQ_TEST_DATA points."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    root = Path(os.environ.get("RAYPQ_TEST_DATA", default))
    if not root.is_dir():
        pytest.skip(f"no real data at {root} (set RAYPQ_TEST_DATA)")
    return root


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """An S3 server of this process."""
    server = S3Server()
    yield server
    server.close()


@pytest.fixture
def bucket(s3: S3Server) -> Iterator[str]:
    """An empty bucket, with the environment that reaches it: ``s3://...``."""
    import fsspec

    with reachable(s3.environment()):
        name = f"test-{uuid.uuid4().hex[:12]}"
        fsspec.filesystem("s3").mkdir(name)
        yield f"s3://{name}"


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Writes columns to a Parquet file below tmp_path: ``write("a/b.parquet", id=…, feature=…)``.

    A two-dimensional array becomes a fixed_size_list column.
    """

    def write(name: str, /, row_group: int | None = None, **columns: Any) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        ready = {
            key: arrays.fixed_list(value) if getattr(value, "ndim", 1) == 2 else value
            for key, value in columns.items()
        }
        pq.write_table(pa.table(ready), path, row_group_size=row_group, write_page_checksum=True)
        return str(path)

    return write


@pytest.fixture
def column() -> Callable[[str, str, np.ndarray], pa.Array]:
    """A vector column of any layout: ``column("large_list", "float16", X)``."""

    def column(layout: str, dtype: str, X: np.ndarray) -> pa.Array:
        X = np.ascontiguousarray(X, dtype=dtype)
        n, width = X.shape
        values = pa.array(X.reshape(-1))
        offsets = np.arange(n + 1) * width
        if layout == "list":
            return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)
        if layout == "large_list":
            return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values)
        if layout == "fixed_size_binary":
            return arrays.fixed_binary(X.view(np.uint8).reshape(n, width * X.itemsize))
        fixed = pa.FixedSizeListArray.from_arrays(values, width)
        if layout == "tensor":
            kind = pa.fixed_shape_tensor(values.type, [2, width // 2])
            return pa.ExtensionArray.from_storage(kind, fixed)
        assert layout == "fixed_size_list", layout
        return fixed

    return column


@dataclass(frozen=True, kw_only=True)
class TinyDataset:
    """A generated data set: 8 seen and 4 unseen classes, three training and two test shards.

    ``X`` [N, dx], ``y`` [N] are the training rows in shard order; ``E`` [12, da] the embeddings.
    """

    root: Path
    X: np.ndarray
    y: np.ndarray
    E: np.ndarray

    @property
    def train(self) -> str:
        return str(self.root / "train")

    @property
    def test(self) -> str:
        return str(self.root / "test")

    @property
    def classes(self) -> str:
        return str(self.root / "classes.parquet")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyDataset:
    """The tiny feature store; tests must not write into it."""
    root = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(7)
    T = SEEN + UNSEEN
    E = rng.standard_normal((T, DA)).astype(np.float32)
    centres = np.tanh(E @ rng.standard_normal((DA, DX))) * 2
    names = np.array([f"c{t:02d}" for t in range(T)])

    def rows(y: np.ndarray) -> np.ndarray:
        return (centres[y] + 0.4 * rng.standard_normal((len(y), DX))).astype(np.float32)

    def store(folder: str, shards: int, n: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
        (root / folder).mkdir()
        y = np.concatenate([rng.permutation(np.arange(n) % classes) for _ in range(shards)])
        X = rows(y)
        for part in range(shards):
            at = slice(part * n, (part + 1) * n)
            columns = {
                "id": [f"{folder}-{part}-{row}" for row in range(n)],
                "feature": arrays.fixed_list(X[at]),
                "label": names[y[at]],
            }
            pq.write_table(pa.table(columns), root / folder / f"part-{part}.parquet")
        return X, y

    columns = {
        "class_id": names,
        "name": [f"class {name}" for name in names],
        "embedding": arrays.fixed_list(E),
        "seen": np.arange(T) < SEEN,
        "image_count": np.arange(T, dtype=np.int64) * 10,
        "in_2hops": np.isin(np.arange(T), [8, 9]),
        "in_3hops": np.isin(np.arange(T), [8, 9, 10]),
    }
    pq.write_table(pa.table(columns), root / "classes.parquet")
    X, y = store("train", 3, 100, SEEN)
    store("test", 2, 60, T)
    return TinyDataset(root=root, X=X, y=y, E=E)


@pytest.fixture(scope="session")
def alone() -> ClusterSettings:
    """One worker of this process, without Ray."""
    return ClusterSettings(cluster="none", workers=1)


Fit = Callable[..., Model]


def by_gradient(
    root: Path,
    method: GradientMethod,
    X: np.ndarray,
    y: np.ndarray,
    A: np.ndarray,
    shards: Sequence[int],
) -> Model:
    """Trains from files below ``root``; where unlabelled rows are needed too, from the same."""
    names = np.array([f"c{t:02d}" for t in range(len(A))])
    columns = {"class_id": names, "embedding": arrays.fixed_list(A)}
    pq.write_table(pa.table(columns), root / "classes.parquet")
    start = 0
    (root / "rows").mkdir()
    for part, n in enumerate(shards):
        at = slice(start, start + n)
        start += n
        columns = {
            "id": np.arange(len(X))[at],
            "feature": arrays.fixed_list(X[at]),
            "label": names[y[at]],
        }
        pq.write_table(pa.table(columns), root / "rows" / f"part-{part:03d}.parquet")
    rows = [str(root / "rows")]
    job = TrainJob(
        method=method.name,
        features=rows,
        unlabelled=rows if method.needs_unlabelled else [],
        classes=str(root / "classes.parquet"),
        output=str(root / "model"),
        where=ClusterSettings(cluster="none", workers=1),
    )
    executor = LocalExecutor(1)
    record = RunRecord(job, executor)
    return fit_gradient(job, method, TrainingPlan.make(job, method), executor, record).model


@pytest.fixture(scope="session")
def fit(tmp_path_factory: pytest.TempPathFactory) -> Fit:
    """Trains a method on rows in memory: ``fit(method, X, y=y, A=A)``.

    ``shards`` are row counts; batches of ``batch`` rows are cut within each, and statistics are
    merged as the training stage does: in each shard, then shard by shard. Methods by gradient
    read the shards from files.
    """

    def fit(
        method: Method,
        X: np.ndarray,
        *,
        y: np.ndarray | None = None,
        A: np.ndarray | None = None,
        batch: int = 64,
        shards: Sequence[int] | None = None,
    ) -> Model:
        X = np.ascontiguousarray(X, dtype=np.float32)
        if isinstance(method, GradientMethod):
            root = tmp_path_factory.mktemp("by-gradient")
            return by_gradient(root, method, X, y, A, shards or [len(X)])
        assert isinstance(method, ReductionMethod)
        y = None if y is None else y.astype(np.int32)
        names = () if A is None else tuple(f"c{t:02d}" for t in range(len(A)))
        state = method.begin(TrainingSetInfo(N=len(X), dx=X.shape[1], A=A, names=names))
        ends = np.cumsum(shards or [len(X)])
        assert ends[-1] == len(X), "shards must cover the rows"
        while not state.done:
            total, start = Stats(), 0
            for end in ends:
                stats = Stats()
                for low in range(start, int(end), batch):
                    at = slice(low, min(low + batch, int(end)))
                    part = TrainBatch(X=X[at], y=None if y is None else y[at], row=low)
                    rows = method.rows_of_pass(state)
                    part = part if rows is None else part.chosen(rows)
                    stats.merge(method.accumulate(state.for_workers(), part))
                total.merge(stats)
                start = int(end)
            state = method.update(state, total)
        return method.model(state)

    return fit
