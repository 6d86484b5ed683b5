"""Batches that a worker's threads encode at the same time: the same files as by one thread."""

import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypq import api, kernels
from raypq.config import ClusterSettings, EncodeJob
from raypq.data import arrays
from raypq.data.features import batch_rows
from raypq.data.prefetch import in_flight
from raypq.errors import JobError
from raypq.methods.pqzsl import PQZSLModel, PQZSLSettings

DX, D, M, K = 8192, 32, 8, 16
ROWS = 4 * batch_rows(DX) + 5  # the last batch has a few rows
BAD = 2 * batch_rows(DX) + 17  # a row of the third batch


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A model with a projection, and two shards of several batches."""
    root = tmp_path_factory.mktemp("in-flight")
    rng = np.random.default_rng(0)
    tensors = {
        "P": rng.standard_normal((D, DX), dtype=np.float32),
        "C": rng.standard_normal((M, K, D // M), dtype=np.float32),
    }
    settings = PQZSLSettings(M=M, K=K, normalise="unit")
    PQZSLModel(settings=settings, tensors=tensors, dx=DX, da=None).save(str(root / "model"))
    for name, bad in (("good", None), ("bad", BAD)):
        (root / name).mkdir()
        for shard in range(2):
            X = rng.standard_normal((ROWS, DX), dtype=np.float32)
            if bad is not None and shard == 0:
                X[bad, 3] = np.nan
            ids = pa.array(np.arange(ROWS) + shard * ROWS)
            table = pa.table({"id": ids, "feature": arrays.fixed_list(X)})
            pq.write_table(table, root / name / f"{shard}.parquet")
    return root


@pytest.fixture(autouse=True)
def threads_restored():
    before = kernels.threads()
    yield
    kernels.set_threads(before)


def encode(root, features, threads, precision="fp32"):
    output = f"codes-{features}-{threads}-{precision}"
    return api.encode(
        EncodeJob(
            model=str(root / "model"),
            features=[str(root / features)],
            output=str(root / output),
            precision=precision,
            where=ClusterSettings(cluster="none", workers=1, threads=threads),
        )
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_files_are_those_of_one_thread(root, precision):
    one, *others = (encode(root, "good", threads, precision) for threads in (1, 2, 3))
    for other in others:
        for receipt, expected in zip(other.shards, one.shards, strict=True):
            assert receipt.sha256 == expected.sha256
            assert receipt.stats == expected.stats
        changed = "codes_changed_by_precision"
        assert other.summary.get(changed) == one.summary.get(changed)


def test_a_bad_row_of_a_later_batch_fails_its_shard_only(root):
    messages = []
    for threads in (1, 2):
        with pytest.raises(JobError) as error:
            encode(root, "bad", threads)
        (failure,) = error.value.failures
        assert failure.shard.endswith("0.parquet")
        assert error.value.done == 1
        messages.append(failure.reason)
        output = root / f"codes-bad-{threads}-fp32"
        assert len([*(output / "data").glob("*.parquet")]) == 1
    assert messages[0] == messages[1]
    assert f"row {BAD}" in messages[0]


def test_results_come_in_order_and_no_more_items_are_taken_than_may_wait():
    taken, release = [], threading.Event()

    def items():
        for item in range(12):
            taken.append(item)
            yield item

    def compute(item):
        release.wait(10)
        return item * item

    results = in_flight(compute, items(), 2, waiting=1)
    timer = threading.Timer(0.5, lambda: (seen.append(len(taken)), release.set()))
    seen = []
    timer.start()
    assert [*results] == [item * item for item in range(12)]
    # Three in flight, and two that the reading thread has ahead.
    assert seen[0] <= 5


def test_an_error_comes_in_place_of_its_result():
    def compute(item):
        if item == 3:
            raise ValueError("the fourth")
        return item

    results = in_flight(compute, iter(range(9)), 2, waiting=1)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="the fourth"):
        next(results)


def test_a_consumer_that_stops_ends_the_threads():
    before = threading.active_count()
    results = in_flight(lambda item: item, iter(range(1000)), 3, waiting=1)
    assert next(results) == 0
    results.close()
    assert threading.active_count() == before


def test_a_limit_of_one_thread_holds_in_the_context_only():
    import torch

    kernels.set_threads(3)
    with kernels.thread_limit(1):
        assert kernels.threads() == 1
        assert torch.get_num_threads() == 1
    assert kernels.threads() == 3
    assert torch.get_num_threads() == 3
