"""A device that is not there is refused at once by every verb that has one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import raypq
from raypq import api, kernels
from raypq.config import (
    ClusterSettings,
    DuplicatesJob,
    EncodeJob,
    ExtractJob,
    ReindexJob,
    SearchJob,
    TrainJob,
)
from raypq.errors import ConfigError
from raypq.methods import registry

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
CUDA = ClusterSettings(cluster="none", workers=1, device="cuda")
TOLD = r"device: cuda cannot be used here; torch .*(built without CUDA|no GPU).*--device cpu"


def train(home: Any) -> Any:
    return api.train(
        TrainJob(
            method="pqzsl", features=[home("train")], classes=home("classes.parquet"),
            output=home("m"), settings={"M": 5, "K": 16}, where=CUDA,
        )
    )  # fmt: skip


def learn(home: Any) -> Any:
    return api.train(
        TrainJob(
            method="dpq", features=[home("train")], classes=home("classes.parquet"),
            output=home("m"), where=CUDA,
        )
    )  # fmt: skip


def encode(home: Any) -> Any:
    return api.encode(
        EncodeJob(model=home("old"), features=[home("features")], output=home("c"), where=CUDA)
    )


def classify(home: Any) -> Any:
    return home.classify("p", where=CUDA)


def search(home: Any) -> Any:
    return api.search(
        SearchJob(
            codes=home("codes"), queries=[str(home.shard(0))], top_k=3, output=home("f"), where=CUDA
        )
    )


def duplicates(home: Any) -> Any:
    return api.duplicates(
        DuplicatesJob(codes=home("codes"), threshold=0.1, output=home("d"), where=CUDA)
    )


def reindex(home: Any) -> Any:
    return api.reindex(
        ReindexJob(model=home("old"), features=[home("features")], codes=home("c"), where=CUDA)
    )


def extract(home: Any) -> Any:
    return api.extract(
        ExtractJob(images=[home("features")], backbone=home("old"), output=home("e"), where=CUDA)
    )


@pytest.mark.parametrize(
    "verb",
    [train, learn, encode, classify, search, duplicates, reindex, extract],
    ids=lambda verb: verb.__name__,
)
def test_every_verb_refuses_it_at_once(home: Any, verb: Callable[[Any], Any]) -> None:
    home.encode()
    with pytest.raises(ConfigError, match=TOLD):
        verb(home)


@pytest.mark.parametrize("cluster", ["none", "local"])
def test_no_ray_is_started_for_it(cluster: str) -> None:
    where = ClusterSettings(cluster=cluster, workers=1, device="cuda")
    with pytest.raises(ConfigError, match=TOLD), api.open_executor(where):
        pass


def test_models_and_kernels_refuse_it(home: Any) -> None:
    model = registry.load(home("old"))
    X = np.zeros((2, model.dx), np.float32)
    with pytest.raises(ConfigError, match=TOLD):
        model.encode(X, device="cuda")
    tables = model.tables(model.decode(model.encode(X)), None, "l2")
    for kernel in (kernels.topk_per_code, kernels.topk_per_query, kernels.topk_per_vector):
        with pytest.raises(ConfigError, match=TOLD):
            kernel(model.encode(X), tables, 1, device="cuda")


@pytest.mark.ray
def test_a_ray_worker_refuses_for_good_before_it_loads_anything() -> None:
    from raypq.distributed.worker_actor import WorkerActor

    def make() -> Any:
        raise AssertionError("made")

    problem = WorkerActor(raypq.__version__, 1, "cuda", make).ping()
    assert problem is not None
    assert problem.everywhere
    assert "device: cuda cannot be used here" in problem.reason
    assert "--gpus-per-worker 1" in problem.reason
