"""A head learned on Ray has the bits of one learned without it."""

from __future__ import annotations

from typing import Any

import pytest

from raypq import api
from raypq.config import ClusterSettings, TrainJob

pytestmark = pytest.mark.ray


@pytest.mark.parametrize("loss", ["softmax", "ridge"])
def test_a_head_has_the_same_bits_on_ray(loss: str, home: Any) -> None:
    home.encode("old")
    digests = {}
    for name, where in (
        ("none", home.where),
        ("one", ClusterSettings(cluster="local", workers=1)),
        ("two", ClusterSettings(cluster="local", workers=2)),
    ):
        trained = api.train(
            TrainJob(
                method="linear",
                codes=home("codes"),
                classes=_all_seen(home),
                output=home(f"{loss}-{name}"),
                settings={"loss": loss},
                where=where,
            )
        )
        assert trained.model.layer is not None
        digests[name] = trained.model.layer.digest
    assert len(set(digests.values())) == 1, digests


def _all_seen(home: Any) -> str:
    import pyarrow.parquet as pq

    table = pq.read_table(home("classes.parquet"), columns=["class_id"])
    pq.write_table(table, home("plain.parquet"))
    return str(home("plain.parquet"))
