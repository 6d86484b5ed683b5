"""Resources of the nodes of a Ray cluster, and what workers need of them."""

from __future__ import annotations

from collections.abc import Mapping

import ray

from raypq import console, machine
from raypq.config import ClusterSettings
from raypq.distributed.errors import ClusterError, described


def worker_resources(settings: ClusterSettings) -> dict[str, float]:
    """The resources of a worker that the settings name."""
    resources = {"CPU": float(settings.threads), "GPU": settings.gpus_per_worker}
    if settings.memory_per_worker is not None:
        resources["memory"] = settings.memory_per_worker * machine.GIB
    return {name: count for name, count in resources.items() if count}


def _fits(node: Mapping[str, float], resources: Mapping[str, float]) -> bool:
    return all(node.get(name, 0.0) >= count for name, count in resources.items())


def room(node: Mapping[str, float], needed: Mapping[str, float]) -> int:
    """Workers that fit on an empty node.

    Args:
        needed: resources of a worker, at least one of them, none 0.
    """
    # Not //, for which ten tenths of a GPU are nine: 1.0 // 0.1 == 9.0.
    return min(int(node.get(name, 0.0) / count) for name, count in needed.items())


def check_resources(settings: ClusterSettings) -> dict[str, float]:
    """The resources of a worker, which some node has or an autoscaler may add.

    Raises:
        ClusterError: no node has them; names what is needed and what the nodes have.
    """
    needed = worker_resources(settings)
    nodes = _nodes()
    if any(_fits(node, needed) for node in nodes):
        return needed
    names = {"CPU": 0, "GPU": 0, **needed}
    available = "; ".join(
        sorted({described({name: node.get(name, 0.0) for name in names}) for node in nodes})
    )
    raise ClusterError(
        f"a worker needs {described(needed)}, but no node has that; the nodes have: {available}. "
        "Ask for less (--threads, --gpus-per-worker, --memory-per-worker; in a config threads, "
        "gpus_per_worker, memory_per_worker below where), or add nodes that have it"
    )


def nodes_that_fit(settings: ClusterSettings) -> list[dict[str, float]]:
    """Resources of the nodes that have room for a worker, and of node groups of an autoscaler."""
    return [node for node in _nodes() if _fits(node, worker_resources(settings))]


def warn_of_room(workers: int, needed: Mapping[str, float]) -> None:
    """Warns where all nodes together have room for some of the workers only, other jobs aside.

    Args:
        needed: resources of a worker.
    """
    if node_groups():  # an autoscaler may add nodes
        return
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fitting = sum(room(node, needed) for node in nodes)
    if fitting < workers:
        console.warn(
            f"asked for {workers} workers, but the cluster has room for {fitting}: each needs "
            f"{described(needed)}; the run goes on with those. Ask for fewer or smaller ones "
            "(--workers, --threads, --memory-per-worker; workers, threads, memory_per_worker in a "
            "config), or add nodes",
            workers=fitting,
        )


def _nodes() -> list[dict[str, float]]:
    """Resources of every live node, and of every node group of an autoscaler."""
    live = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [*live, *(resources for resources, _ in node_groups())]


def node_groups() -> list[tuple[dict[str, float], int]]:
    """Resources of a node of each group that the cluster's autoscaler may add, and the largest
    number of such nodes.

    Ray 2.60 has no public call for this. Only autoscaler v2, KubeRay's default, states them.
    """
    config = ray._private.state.state.get_cluster_config()
    groups = config.node_group_configs if config else []
    return [(dict(group.resources), group.max_count) for group in groups if group.max_count]
