"""The files of cluster/ are valid, name one version of everything, and fail closed."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError
from pod_security import containers, violations
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

ROOT = Path(__file__).resolve().parents[3]
CLUSTER = ROOT / "cluster"
SCHEMAS = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
KUBERNETES = "1.34.0"
BUILDS = ("kubernetes", "kubernetes/ephemeral")
STAGES = ("train", "encode", "classify", "search", "reindex")

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl here")


@cache
def _built(name: str) -> str:
    done = subprocess.run(
        ["kubectl", "kustomize", str(CLUSTER / name)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(_built(name)))


def of_kind(kind: str, name: str = "kubernetes") -> list[dict[str, Any]]:
    return [document for document in documents(name) if document["kind"] == kind]


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


@pytest.mark.parametrize("name", BUILDS)
def test_manifests_are_valid_and_in_one_namespace(name: str) -> None:
    for document in documents(name):
        check(document)
        if document["kind"] != "Namespace":
            assert document["metadata"]["namespace"] == "raypq"
    (namespace,) = of_kind("Namespace", name)
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.parametrize("parts", [{"gpu"}, {"s3"}, {"gpu", "s3"}, {"cpu", "gpu", "s3"}])
def test_parts_can_be_left_out(parts: set[str], tmp_path: Path) -> None:
    shutil.copytree(CLUSTER, tmp_path / "cluster")
    shutil.copytree(ROOT / "jobs" / "configs", tmp_path / "jobs" / "configs")
    edited = tmp_path / "cluster" / "kubernetes" / "kustomization.yaml"
    values = yaml.safe_load(edited.read_text(encoding="utf-8"))
    values["components"] = [name for name in values["components"] if name not in parts]
    values["namespace"] = "other"
    edited.write_text(yaml.safe_dump(values), encoding="utf-8")
    command = ["kubectl", "kustomize", str(edited.parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    every = list(yaml.safe_load_all(done.stdout))
    for document in every:
        check(document)
        own = document["metadata"]
        assert "other" in (own.get("namespace"), own["name"])
    (cluster,) = [document for document in every if document["kind"] == "RayCluster"]
    groups = {group["groupName"]: group for group in cluster["spec"]["workerGroupSpecs"]}
    assert groups.keys() == {"cpu", "gpu"} - parts
    for pod in pods(cluster):
        assert ("envFrom" in pod["containers"][0]) == ("s3" not in parts)


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
    document = copy.deepcopy(of_kind("RayCluster")[0])
    place: Any = document
    for step in path[:-1]:
        place = place.setdefault(step, {}) if isinstance(step, str) else place[step]
    place[path[-1]] = value
    with pytest.raises(ValidationError):
        check(document)


def test_a_cron_job_without_a_schedule_is_refused() -> None:
    document = copy.deepcopy(of_kind("RayCronJob", "kubernetes/ephemeral")[0])
    check(document)
    del document["spec"]["schedule"]
    with pytest.raises(ValidationError):
        check(document)


def pods(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The ``spec`` of every pod that a document leads to."""
    if isinstance(document, dict):
        if "containers" in document:
            yield document
        for value in document.values():
            yield from pods(value)
    elif isinstance(document, list):
        for value in document:
            yield from pods(value)


@pytest.mark.parametrize("name", BUILDS)
def test_every_pod_is_admitted_to_a_restricted_namespace(name: str) -> None:
    every = [pod for document in documents(name) for pod in pods(document)]
    assert len(every) == {"kubernetes": 9, "kubernetes/ephemeral": 3}[name]
    for pod in every:
        assert violations(pod) == []
        for container in containers(pod):
            # Beyond the standard: nothing of the image can be changed, and /tmp is there to write.
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}
            assert container["resources"]["limits"]["memory"]
        assert pod["nodeSelector"]["kubernetes.io/arch"] == "amd64"
    for cluster in of_kind("RayCluster", name):  # a container that KubeRay adds to the head
        context = cluster["spec"]["autoscalerOptions"]["securityContext"]
        (head, *_) = pods(cluster)
        sidecar = {"name": "autoscaler", "securityContext": context}
        assert violations({**head, "containers": [sidecar]}) == []


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("hostNetwork",), True, "hostNetwork"),
        (("securityContext", "seccompProfile"), {"type": "Unconfined"}, "seccompProfile"),
        (("securityContext", "runAsNonRoot"), False, "runAsNonRoot"),
        (("securityContext", "runAsUser"), 0, "runAsUser"),
        (("volumes",), [{"name": "host", "hostPath": {"path": "/"}}], "volume host of hostPath"),
        (("containers", 0, "securityContext", "capabilities"), {}, "are not dropped"),
        (
            ("containers", 0, "securityContext", "allowPrivilegeEscalation"),
            True,
            "allowPrivilegeEscalation",
        ),
        (("containers", 0, "securityContext", "privileged"), True, "privileged"),
        (("containers", 0, "ports"), [{"containerPort": 80, "hostPort": 80}], "hostPort"),
        (("initContainers",), [{"name": "more"}], "more: allowPrivilegeEscalation"),
    ],
)
def test_the_rules_find_what_is_not_allowed(path: tuple[Any, ...], value: Any, said: str) -> None:
    pod: Any = copy.deepcopy(next(pods(of_kind("RayCluster")[0])))
    place = pod
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert any(said in violation for violation in violations(pod))


def cron_jobs() -> dict[str, dict[str, Any]]:
    return {job["metadata"]["name"]: job["spec"] for job in of_kind("CronJob")}


def test_every_stage_has_a_job_that_is_there() -> None:
    (configs,) = of_kind("ConfigMap")
    assert configs["data"].keys() == {f"{stage}.yaml" for stage in STAGES}
    jobs = cron_jobs()
    assert jobs.keys() == {f"raypq-{name}" for name in (*STAGES, "doctor")}
    cluster, head = of_kind("RayCluster")[0]["metadata"]["name"], "http://raypq-head-svc:8265"
    assert head == f"http://{cluster}-head-svc:8265"  # the service that KubeRay makes
    for name, job in jobs.items():
        (pod,) = pods(job)
        (container,) = pod["containers"]
        assert container["command"] == ["ray", "job", "submit", "--address", head, "--"]
        words = container["args"]
        stage = name.removeprefix("raypq-")
        if stage == "doctor":
            assert words[:2] == ["raypq", "doctor"]
        else:
            assert words[:2] == ["python", f"/home/ray/jobs/{stage}.py"]
            assert (ROOT / "jobs" / f"{stage}.py").exists()
            assert words[words.index("--config") + 1] == f"/etc/raypq/{stage}.yaml"
        (secret,) = container["env"]  # the token, by reference
        assert secret["valueFrom"]["secretKeyRef"] == {"name": cluster, "key": "auth_token"}


def test_jobs_end_and_are_removed_and_none_runs_twice() -> None:
    for name, job in cron_jobs().items():
        assert job["concurrencyPolicy"] == "Forbid"
        assert job["suspend"] is (name != "raypq-reindex")
        assert job["successfulJobsHistoryLimit"] <= 7
        assert job["failedJobsHistoryLimit"] <= 7
        spec = job["jobTemplate"]["spec"]
        assert spec["ttlSecondsAfterFinished"]
        assert spec["activeDeadlineSeconds"]
    (nightly,) = of_kind("RayCronJob", "kubernetes/ephemeral")
    assert nightly["spec"]["schedule"] == cron_jobs()["raypq-reindex"]["schedule"]
    assert nightly["spec"]["jobTemplate"]["ttlSecondsAfterFinished"]


def clusters() -> Iterator[tuple[str, dict[str, Any]]]:
    yield "permanent", of_kind("RayCluster")[0]["spec"]
    nightly = of_kind("RayCronJob", "kubernetes/ephemeral")[0]
    yield "ephemeral", nightly["spec"]["jobTemplate"]["rayClusterSpec"]


def test_clusters_are_closed() -> None:
    for name, spec in clusters():
        assert spec["authOptions"]["mode"] == "token", name
        head = spec["headGroupSpec"]
        assert head["serviceType"] == "ClusterIP", name
        assert not head.get("enableIngress"), name
        for pod in pods(spec):
            for container in pod["containers"]:
                # Secrets by reference; a pod whose secret is missing does not start.
                assert not container.get("env")
                for source in container["envFrom"]:
                    assert "optional" not in source["secretRef"]


def test_workers_of_the_configs_fit_on_the_pods() -> None:
    """Ray offers 70% of a pod's memory to workers, of which a worker has its share by CPUs."""
    for name, spec in clusters():
        group = spec["workerGroupSpecs"][0]
        (pod,) = pods(group)
        limits = pod["containers"][0]["resources"]["limits"]
        assert limits == pod["containers"][0]["resources"]["requests"]
        cpus, memory = int(limits["cpu"]), int(limits["memory"].removesuffix("Gi")) << 30
        for path in sorted((ROOT / "jobs" / "configs").glob("*.yaml")):
            if name == "ephemeral" and path.stem != "reindex":
                continue
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
            where = values["where"]
            per_pod = cpus // where["threads"]
            assert where["workers"] <= per_pod * group["maxReplicas"], (name, path.name)
            share = 0.7 * memory / per_pod
            assert values.get("cache_bytes", 0) + (1 << 30) <= share, (name, path.name)


def test_gpu_workers_go_where_gpus_are() -> None:
    group = of_kind("RayCluster")[0]["spec"]["workerGroupSpecs"][1]
    (pod,) = pods(group)
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert pod["nodeSelector"]["nvidia.com/gpu.present"] == "true"
    assert "nvidia.com/gpu" in {toleration["key"] for toleration in pod["tolerations"]}
    assert pod["containers"][0]["image"].endswith("-gpu")


def test_what_no_file_may_hold() -> None:
    files = [path for path in CLUSTER.rglob("*") if path.is_file()]
    for path in [*files, *(ROOT / "jobs" / "configs").iterdir()]:
        text = path.read_text(encoding="utf-8")
        for bad in ("AKIA", "PRIVATE KEY", "0.0.0.0", "password", "privileged: true", ":latest"):
            assert bad not in text, f"{path.name} has {bad}"


def test_one_version_of_ray_and_one_of_raypq_everywhere() -> None:
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned
    for name, spec in clusters():
        assert spec["rayVersion"] == pinned[1], name
    docker = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
    assert set(re.findall(r"rayproject/ray:([\d.]+)", docker)) == {pinned[1]}
    version = re.search(r'"(.*)"\n', (ROOT / "raypq" / "_version.py").read_text().partition("=")[2])
    assert version
    texts = [_built(name) for name in BUILDS]
    texts += [
        path.read_text() for path in (CLUSTER / "aws" / "cluster.yaml", CLUSTER / "Dockerfile")
    ]
    for text in texts:
        assert set(re.findall(r"/raypq:([\d.]+)", text)) == {version[1]}
