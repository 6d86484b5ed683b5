"""Tasks are small: models, tables, queries and lists of shards are shared."""

from __future__ import annotations

import pickle
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypq.config import (
    ClassifyJob,
    ClusterJob,
    ClusterSettings,
    DeduplicateJob,
    DuplicatesJob,
    EncodeJob,
    EvaluateJob,
    RetrievalJob,
    SearchJob,
    TrainJob,
)
from raypq.data import arrays
from raypq.execution.executor import WorkerPool
from raypq.execution.local import LocalExecutor
from raypq.methods.pq import PQModel, PQSettings
from raypq.stages.classification import classify, evaluate
from raypq.stages.encoding import encode
from raypq.stages.retrieval import cluster, search
from raypq.stages.retrieval.duplicates import deduplicate, near_duplicates
from raypq.stages.retrieval.evaluate import evaluate as evaluate_retrieval
from raypq.stages.training import train

ALONE = ClusterSettings(cluster="none", workers=1)
SHARDS, ROWS, M, D = 24, 40, 32, 512
MODEL_BYTES = 4 * 256 * D
MOST = 3000  # bytes of a task


class Weighing(LocalExecutor):
    """Pickles every task, as Ray does; what Ray shares is weighed once a pass."""

    def __init__(self) -> None:
        super().__init__(1)
        self.sizes: dict[str, list[int]] = defaultdict(list)

    @contextmanager
    def start_workers(self, make: Any, *args: Any, **more: Any) -> Iterator[WorkerPool[Any]]:
        with super().start_workers(make, *args, **more) as pool:
            yield _WeighingPool(pool, self)


class _WeighingPool:
    def __init__(self, pool: Any, executor: Weighing) -> None:
        self._pool, self._executor, self.stats = pool, executor, pool.stats

    def map(self, call: Any, tasks: Any, *shared: Any, **more: Any) -> Any:
        for task in tasks:
            self._executor.sizes[type(task).__name__].append(len(pickle.dumps((call, task))))
        sent = [pickle.loads(pickle.dumps(task)) for task in tasks]
        return self._pool.map(call, sent, *pickle.loads(pickle.dumps(shared)), **more)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sizes")
    rng = np.random.default_rng(0)
    C = rng.standard_normal((M, 256, D // M)).astype(np.float32)
    PQModel(settings=PQSettings(M=M, K=256), tensors={"C": C}, dx=D).save(str(root / "model"))
    (root / "features").mkdir()
    for part in range(SHARDS):
        X = rng.standard_normal((ROWS, D)).astype(np.float32)
        ids = part * ROWS + np.arange(ROWS)
        labels = [f"c{i % 5}" for i in range(ROWS)]
        table = {"id": ids, "feature": arrays.fixed_list(X), "label": labels}
        pq.write_table(pa.table(table), root / "features" / f"part-{part:02d}.parquet")
    queries = {"id": np.arange(9), "feature": arrays.fixed_list(X[:9]), "label": labels[:9]}
    pq.write_table(pa.table(queries), root / "queries.parquet")
    (root / "asked.txt").write_text("".join(f"{number}\n" for number in range(700)))
    classes = {
        "class_id": [f"c{i}" for i in range(5)],
        "embedding": arrays.fixed_list(rng.standard_normal((5, D)).astype(np.float32)),
        "seen": [True, True, True, False, False],
    }
    pq.write_table(pa.table(classes), root / "classes.parquet")
    job = EncodeJob(
        model=str(root / "model"),
        features=[str(root / "features")],
        output=str(root / "codes"),
        where=ALONE,
    )
    encode.encode(job, LocalExecutor(1))
    return root


def test_tasks_are_small(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executor = Weighing()
    codes, out = str(root / "codes"), tmp_path
    features, queries = [str(root / "features")], [str(root / "queries.parquet")]
    encode.encode(
        EncodeJob(model=str(root / "model"), features=features, output=str(out / "codes")), executor
    )
    search.search(
        SearchJob(
            codes=codes, queries=queries, top_k=5, rerank=20, features=features,
            output=str(out / "found"),
        ),
        executor,
    )  # fmt: skip
    search.search(
        SearchJob(
            codes=codes, query_ids=str(root / "asked.txt"), distance="sdc", top_k=5,
            output=str(out / "asked"),
        ),
        executor,
    )  # fmt: skip
    near_duplicates.near_duplicates(
        DuplicatesJob(codes=codes, threshold=1.0, output=str(out / "pairs")), executor
    )
    deduplicate.deduplicate(
        DeduplicateJob(codes=codes, threshold=1.0, output=str(out / "groups")), executor
    )
    cluster.cluster(ClusterJob(codes=codes, k=5, output=str(out / "clusters")), executor)
    evaluate_retrieval(
        RetrievalJob(codes=codes, queries=queries, at=[5], features=features), executor
    )
    job = TrainJob(
        method="pqzsl", features=features, classes=str(root / "classes.parquet"),
        settings={"M": 3, "K": 16, "iterations": 1, "polish": 0}, output=str(out / "model"),
        on_bad_shard="quarantine",
    )  # fmt: skip
    trainable = tmp_path / "features"
    trainable.mkdir()
    for path in sorted((root / "features").iterdir()):
        table = pq.read_table(path)
        seen = [value in ("c0", "c1", "c2") for value in table["label"].to_pylist()]
        pq.write_table(table.filter(pa.array(seen)), trainable / path.name)
    train.train(job.model_copy(update={"features": [str(trainable)]}), executor)
    classify.classify(
        ClassifyJob(
            model=str(out / "model"), features=[str(trainable)],
            classes=str(root / "classes.parquet"), output=str(out / "predictions"),
        ),
        executor,
    )  # fmt: skip
    evaluate.evaluate(
        EvaluateJob(predictions=str(out / "predictions"), classes=str(root / "classes.parquet")),
        executor,
    )
    assert MODEL_BYTES > 100 * MOST
    most = {name: max(sizes) for name, sizes in executor.sizes.items()}
    # Queries travel once, with the task that ranks or writes theirs.
    own = {"QueryTask": 9 * 4 * D, "WriteTask": 700 * 20, "ScanTask": SHARDS * 300}
    own |= {"RescoreTask": 8 * 300, "ShardGroup": SHARDS * 700}
    large = {name: size for name, size in most.items() if size > MOST + own.get(name, 0)}
    assert not large, large
    assert set(most) >= {
        "ShardTask", "ShardGroup", "ScanTask", "RescoreTask", "WriteTask",
        "PairTask", "ResultTask", "GatherTask", "GroupTask", "QueryTask", "ExactTask", "CodeFiles",
    }, most  # fmt: skip
