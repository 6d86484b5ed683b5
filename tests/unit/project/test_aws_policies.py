"""The policies of cluster/aws: what the head may tag."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

AWS = Path(__file__).resolve().parents[3] / "cluster" / "aws"


def statements(name: str) -> list[dict[str, Any]]:
    return json.loads((AWS / name).read_text())["Statement"]


def test_the_head_tags_what_it_starts_and_instances_of_its_cluster_alone() -> None:
    tagging = [one for one in statements("head-policy.json") if "ec2:CreateTags" in one["Action"]]
    conditions = [one["Condition"]["StringEquals"] for one in tagging]
    assert len(conditions) == 2
    assert conditions[0]["ec2:CreateAction"] == "RunInstances"
    assert tagging[0]["Action"] == "ec2:CreateTags"
    assert conditions[1] == {"aws:ResourceTag/ray-cluster-name": "raypq"}


def test_names_of_statements_are_valid_and_unique() -> None:
    for path in sorted(AWS.glob("*-policy.json")):
        names = [one["Sid"] for one in statements(path.name)]
        assert len(names) == len({*names})
        assert all(name.isascii() and name.isalnum() for name in names)
