"""The files of cluster/ are valid, name one version of everything, and fail closed."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

ROOT = Path(__file__).resolve().parents[3]
CLUSTER = ROOT / "cluster"
SCHEMAS = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
KUBERNETES = "1.34.0"
MANIFESTS = sorted(path.name for path in CLUSTER.glob("*.yaml") if path.name != "aws.yaml")
STAGES = ("train", "encode", "classify", "search", "reindex")


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTER / name).read_text(encoding="utf-8")))


@cache
def kuberay() -> Resource[Any]:
    text = (ROOT / "tests" / "schemas" / "kuberay.yaml").read_text(encoding="utf-8")
    return DRAFT202012.create_resource(yaml.safe_load(text))


def retrieve(uri: str) -> Resource[Any]:
    """Kubernetes' own schemas; they refer to one file of definitions."""
    name = uri.removeprefix("kubernetes:").removeprefix("/api/")
    path = SCHEMAS / f"v{KUBERNETES}-local-strict" / name
    return DRAFT202012.create_resource(json.loads(path.read_text(encoding="utf-8")))


def check(document: dict[str, Any]) -> None:
    """Raises ValidationError where a strict server would refuse the document."""
    kind = document["kind"]
    if document["apiVersion"] != "ray.io/v1":
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
        return
    resource = kuberay()
    schema = {
        "type": "object",
        "additionalProperties": False,
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "properties": {
            "apiVersion": {"const": "ray.io/v1"},
            "kind": {"const": kind},
            "metadata": {"$ref": "kuberay#/$defs/metadata"},
            "spec": {"$ref": f"kuberay#/kinds/{kind}"},
        },
    }
    registry: Registry[Any] = Registry(retrieve=retrieve).with_resource("kuberay", resource)
    Draft202012Validator(schema, registry=registry).validate(document)


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_are_valid(name: str) -> None:
    for document in documents(name):
        check(document)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "authOptions"), {"mode": "yes"}),
        (("spec", "headGroupSpec", "template", "spec", "containers", 0, "image"), 3),
        (("spec", "headGroupSpec", "template", "spec", "volumes", 0, "configMap", "nam"), "x"),
        (("spec", "workerGroupSpecs", 0, "maxReplica"), 3),
        (("spec", "autoscalerOptions", "version"), "v3"),
        (("spec", "rayVersions"), "2.60.0"),
    ],
)
def test_the_schema_refuses_what_kuberay_would(path: tuple[Any, ...], value: Any) -> None:
    document = copy.deepcopy(documents("raycluster.yaml")[0])
    place: Any = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(ValidationError):
        check(document)


def test_a_cron_job_without_a_schedule_is_refused() -> None:
    document = documents("nightly-raycronjob.yaml")[0]
    check(document)
    del document["spec"]["schedule"]
    with pytest.raises(ValidationError):
        check(document)


def test_every_stage_has_a_job_that_is_there() -> None:
    for stage in STAGES:
        (document,) = documents(f"rayjob-{stage}.yaml")
        words = document["spec"]["entrypoint"].split()
        assert (ROOT / "jobs" / f"{stage}.py").exists()
        assert words[:2] == ["python", f"/home/ray/jobs/{stage}.py"]
        assert words[words.index("--config") + 1] == f"/etc/raypq/{stage}.yaml"
        assert (ROOT / "jobs" / "configs" / f"{stage}.yaml").exists()
        cluster = documents("raycluster.yaml")[0]["metadata"]["name"]
        assert document["spec"]["clusterSelector"] == {"ray.io/cluster": cluster}


def test_the_nightly_cron_job_creates_the_reindex_job() -> None:
    cron = documents("nightly-cronjob.yaml")[-1]
    (container,) = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["command"][-1] == "/nightly/rayjob-reindex.yaml"
    assert cron["spec"]["concurrencyPolicy"] == "Forbid"
    (nightly,) = documents("nightly-raycronjob.yaml")
    assert nightly["spec"]["schedule"] == cron["spec"]["schedule"]


def clusters() -> Iterator[tuple[str, dict[str, Any]]]:
    for name in MANIFESTS:
        for document in documents(name):
            spec = document.get("spec", {})
            spec = spec.get("jobTemplate", spec) if document["kind"] == "RayCronJob" else spec
            spec = spec.get("rayClusterSpec", spec)
            if "headGroupSpec" in spec:
                yield name, spec


def pods(spec: dict[str, Any]) -> list[dict[str, Any]]:
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def test_clusters_are_closed() -> None:
    found = list(clusters())
    assert len(found) == 2
    for name, spec in found:
        assert spec["authOptions"]["mode"] == "token", name
        head = spec["headGroupSpec"]
        assert head["serviceType"] == "ClusterIP", name
        assert not head.get("enableIngress"), name
        for pod in pods(spec):
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert not pod.get("hostNetwork")
            for container in pod["containers"]:
                assert container["securityContext"]["allowPrivilegeEscalation"] is False
                # Secrets by reference; a pod whose secret is missing does not start.
                assert not container.get("env")
                for source in container["envFrom"]:
                    assert "optional" not in source["secretRef"]
                assert container["resources"]["limits"]["memory"]


def test_what_no_file_may_hold() -> None:
    for path in [*filter(Path.is_file, CLUSTER.rglob("*")), *(ROOT / "jobs" / "configs").iterdir()]:
        text = path.read_text(encoding="utf-8")
        for bad in ("AKIA", "PRIVATE KEY", "0.0.0.0", "password", "privileged: true", ":latest"):
            assert bad not in text, f"{path.name} has {bad}"


def test_one_version_of_ray_everywhere() -> None:
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned
    for name, spec in clusters():
        assert spec["rayVersion"] == pinned[1], name
    docker = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
    assert set(re.findall(r"rayproject/ray:([\d.]+)", docker)) == {pinned[1]}


def test_the_image_is_built_from_what_is_there() -> None:
    docker = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
    lines = docker.replace("\\\n", " ").splitlines()
    sent = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"
    }
    copied = {
        word
        for line in lines
        if line.startswith("COPY") and "--from" not in line
        for word in line.split()[1:-1]
        if not word.startswith("--")
    }
    assert copied == sent
    for name in copied:
        assert (ROOT / name).exists(), name
    assert [line for line in lines if line.startswith("USER")][-1] == "USER ray"
    assert "ENV RAY_AUTH_MODE=token" in lines
    assert not [line for line in lines if line.startswith(("EXPOSE", "ADD", "CMD", "ENTRYPOINT"))]


@pytest.mark.ray
def test_the_file_of_ray_up_is_valid_and_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.autoscaler._private.util import fillout_defaults, validate_config

    text = (CLUSTER / "aws.yaml").read_text(encoding="utf-8")
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
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        (start,) = (line for line in config[commands] if "ray start" in line)
        assert "RAY_AUTH_MODE=token" in start
        assert config["file_mounts"].keys() == {"/home/ray/.ray/auth_token"}
        assert "RAY_AUTH_TOKEN_PATH=/home/ray/.ray/auth_token" in start
