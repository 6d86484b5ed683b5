"""A file of a store leads to the shard that its rows come from."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from raypq import api
from raypq.config import ClusterSettings, EncodeJob, TrainJob
from raypq.data.store import snapshot
from raypq.data.store.origins import Origins, code_files_of


@pytest.fixture(scope="module")
def codes(world, alone: ClusterSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("codes")
    features = [world.train, world.test]
    model = str(root / "model")
    api.train(
        TrainJob(
            method="pq", features=features, output=model, settings={"M": 2, "K": 16}, where=alone
        )
    )
    for duplicate_ids in ("report", "ignore"):
        output = str(root / duplicate_ids)
        job = EncodeJob(model=model, features=features, output=output, where=alone,
                        duplicate_ids=duplicate_ids)  # fmt: skip
        api.encode(job)
    return root


@pytest.mark.parametrize("kind", ["report", "ignore"])
def test_ids_are_found_with_the_index_of_ids_and_without(codes, kind, world):
    store = str(codes / kind)
    version = snapshot.read(store)
    ids = pa.array(["train-1-7", "test-0-0", "train-1-8", "none"])
    files = code_files_of(store, version, ids)
    origins = Origins()
    assert {name: origins.of(file) for name, file in files.items()} == {
        "train-1-7": f"{world.train}/part-1.parquet",
        "train-1-8": f"{world.train}/part-1.parquet",
        "test-0-0": f"{world.test}/part-0.parquet",
    }
    assert code_files_of(store, version, ids[:0]) == {}


def test_receipts_lead_through_several_stores(codes, tmp_path):
    store = str(codes / "report")
    version = snapshot.read(store)
    first = version.shards[0]
    above = first.model_copy(
        update={"source": first.source.model_copy(update={"uri": f"{store}/{first.path}"}),
                "path": "data/above.parquet"}
    )  # fmt: skip
    made = version.model_copy(update={"shards": (above,)})
    assert Origins([[made]]).of(f"{tmp_path}/data/above.parquet") == first.source.uri
    # A store that was moved is known by the names of its files.
    moved = Origins([[made], [version]])
    assert moved.of("elsewhere/data/above.parquet") == first.source.uri


def test_what_is_of_no_store_is_its_own_origin(codes, tmp_path):
    origins = Origins()
    assert origins.of(f"{tmp_path}/a.parquet") == f"{tmp_path}/a.parquet"
    assert origins.of(f"{codes}/report/data/gone.parquet").endswith("/data/gone.parquet")
    assert origins.of("relative/data/x.parquet").startswith("/"), "canonical"
