"""The nightly job from end to end on a simulated cluster of eight nodes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from raypq import api
from raypq.config import ClusterSettings, ReindexJob
from raypq.data.store import snapshot

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1200)]
NODES = 8


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A head without CPUs, and eight nodes of one CPU each."""
    from ray._private.authentication import authentication_token_setup as tokens
    from ray.cluster_utils import Cluster

    # As ``ray.init`` does for a cluster of its own; ``Cluster`` does not.
    tokens.enable_token_auth_by_default()
    tokens.ensure_token_if_auth_enabled()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        patch.setenv("RAY_agent_register_timeout_ms", "300000")  # eight agents start at once
        cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
        )
        try:
            for _ in range(NODES):
                cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
            cluster.wait_for_nodes(timeout=300)
            yield cluster.address
        finally:
            cluster.shutdown()


def test_nights_on_eight_nodes(home: Any, address: str) -> None:
    for number in range(home.shards, 4 * NODES):
        home.add(number)
    where = ClusterSettings(cluster=address, workers=NODES)
    job = ReindexJob.parse(
        {
            "model": home("old"),
            "features": [home("features")],
            "codes": home("codes"),
            "classify": {"classes": home("classes.parquet"), "output": home("predictions")},
            "where": where,
        }
    )
    with api.open_executor(where):  # one connection for all the nights
        first = api.reindex(job)
        assert first["shards"]["new"] == 4 * NODES
        codes, predictions = (snapshot.read(home(name)) for name in ("codes", "predictions"))
        assert len(codes.shards) == len(predictions.shards) == 4 * NODES
        for version in (codes, predictions):
            workers = version.summary["run"]["workers"]
            assert workers["most"] >= 2
            assert workers["tasks"] == 4 * NODES
        # The same as without a cluster, byte for byte.
        home.encode(output="alone")
        alone = {item.shard: item.sha256 for item in snapshot.read(home("alone")).shards}
        assert {item.shard: item.sha256 for item in codes.shards} == alone

        home.rewrite(1)
        home.shard(3).unlink()
        home.add(4 * NODES)
        second = api.reindex(job)
        assert {name: second["shards"][name] for name in ("new", "changed", "removed")} == {
            "new": 1, "changed": 1, "removed": 1,
        }  # fmt: skip
        rolled = api.reindex(job.model_copy(update={"model": home("new"), "rollout": 0.5}))
        assert rolled["rollout"]["done"] == 2 * NODES
        assert api.reindex(job.model_copy(update={"model": home("new")}))["rollout"]["share"] == 1
        assert api.reindex(job.model_copy(update={"model": home("new")}))["nothing_to_do"]
    assert snapshot.read(home("predictions")).version == 4
