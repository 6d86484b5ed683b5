"""Versions, resources and rights of each node of a cluster, before a job relies on them."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import ray
from ray._private.authentication.authentication_utils import is_token_auth_enabled
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raypq import kernels
from raypq._version import __version__, code_digest
from raypq.config import ClusterSettings
from raypq.data.storage.rights import Refusal, missing_rights, unreadable
from raypq.distributed.cluster import connect
from raypq.distributed.errors import reason_of
from raypq.distributed.head import token_file
from raypq.distributed.resources import node_groups, room, worker_resources
from raypq.distributed.worker_actor import device_problem

_SECONDS = 90.0  # for all nodes to answer


@dataclass(frozen=True, kw_only=True)
class NodeReport:
    """One node.

    Attributes:
        name: host name or address. resources: that Ray knows of it.
        problem: why it has no report; the other values are empty then.
        raypq, python: versions. code: digest of raypq's code. native_missing: why it has no native
            kernels.
        device_problem: why a worker cannot use the device there.
        missing: modules that cannot be imported. unreadable: error by URI.
        refused: missing rights by folder.
    """

    name: str
    resources: dict[str, float]
    problem: str = ""
    raypq: str = ""
    python: str = ""
    code: str = ""
    native_missing: str = ""
    device_problem: str = ""
    missing: tuple[str, ...] = ()
    unreadable: dict[str, str] = field(default_factory=dict)
    refused: dict[str, list[Refusal]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ClusterReport:
    """A cluster as a client finds it.

    Attributes:
        ray, python, raypq: versions of this client. authenticated: by a token.
        nodes: that are up. room: workers that fit on them; addable: on nodes that an autoscaler may
            add. worker_memory: bytes that Ray reserves for a worker; 0 where it is not known.
        open_file: of the token, if others than its owner can read it; else empty.
    """

    ray: str
    python: str
    raypq: str
    authenticated: bool
    nodes: Sequence[NodeReport]
    room: int
    addable: int
    worker_memory: int
    open_file: str


@dataclass(frozen=True)
class Wanted:
    """What a node must have: files to read, folders to write to, and modules to import."""

    files: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()


def inspect(settings: ClusterSettings, wanted: Wanted) -> ClusterReport:
    """Connects as a job would, and collects a report of every node.

    Raises:
        ClusterError: the cluster does not answer, or refuses this client.
    """
    with connect(settings) as executor:
        needed = worker_resources(settings)
        nodes = [node for node in ray.nodes() if node["Alive"]]
        return ClusterReport(
            ray=ray.__version__,
            python=platform.python_version(),
            raypq=__version__,
            authenticated=is_token_auth_enabled(),
            nodes=_node_reports(nodes, settings.device, wanted),
            room=sum(room(node["Resources"], needed) for node in nodes),
            addable=sum(count * room(node, needed) for node, count in node_groups()),
            worker_memory=executor.worker_memory,
            open_file=_open_file(),
        )


def _open_file() -> str:
    file = token_file()
    if "RAY_AUTH_TOKEN" in os.environ or not file.exists() or not file.stat().st_mode & 0o077:
        return ""
    return str(file)


def _node_reports(nodes: Sequence[Any], device: str, wanted: Wanted) -> list[NodeReport]:
    """One task on each node, without resources, so that a full node answers too."""
    remote = ray.remote(num_cpus=0, max_retries=0)(_report_of_node)
    tasks = []
    for node in nodes:
        name = str(node.get("NodeManagerHostname") or node["NodeID"])
        resources = dict(node["Resources"])
        where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = remote.options(scheduling_strategy=where)
        on_device = device if resources.get("GPU") else "cpu"
        tasks.append((name, resources, task.remote(name, resources, on_device, wanted)))
    references = [reference for _, _, reference in tasks]
    ready, _ = ray.wait(references, num_returns=len(references), timeout=_SECONDS)
    answered = {*ready}
    reports = []
    for name, resources, reference in tasks:
        try:
            if reference not in answered:
                raise TimeoutError(f"no answer within {_SECONDS:g} s")
            reports.append(ray.get(reference))
        except (RayError, TimeoutError) as error:
            reports.append(NodeReport(name=name, resources=resources, problem=reason_of(error)))
    return reports


def _report_of_node(
    name: str, resources: dict[str, float], device: str, wanted: Wanted
) -> NodeReport:
    """The report of the node on which this runs."""
    reasons = {uri: unreadable(uri) for uri in wanted.files}
    rights = {folder: missing_rights(folder) for folder in wanted.folders}
    return NodeReport(
        name=name,
        resources=resources,
        raypq=__version__,
        python=platform.python_version(),
        code=code_digest(),
        native_missing=str(kernels.runtime_info()["native_missing"] or ""),
        device_problem=device_problem(device) or "",
        missing=tuple(module for module in wanted.modules if not find_spec(module)),
        unreadable={uri: reason for uri, reason in reasons.items() if reason},
        refused={folder: refused for folder, refused in rights.items() if refused},
    )
