"""Checks of a Ray cluster against the job: versions, room, and what its nodes reach."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from raypq._version import code_digest
from raypq.checks.finding import Finding, errors, fail, ok, warn
from raypq.checks.inputs import Inputs
from raypq.checks.outputs import REMEDIES
from raypq.config import ClusterSettings, WorkerSettings
from raypq.data.storage import is_local

if TYPE_CHECKING:
    from raypq.distributed.inspection import ClusterReport, NodeReport

_ONE_VERSION = "install one version everywhere (an image, or setup_commands)"
_SHARED = (
    "use a place that all nodes have (object storage, a shared mount), or give the nodes' user the "
    "right to read it"
)


def check_nodes(
    where: WorkerSettings, inputs: Inputs, folders: Sequence[str]
) -> tuple[list[Finding], int]:
    """Connects to the cluster of a job and checks it; a local Ray is started for it.

    Args:
        folders: that the job writes to.

    Returns:
        The findings, and the bytes of memory of a worker (0: not known).
    """
    from raypq.distributed.inspection import Wanted, inspect

    subject = f"cluster: {where.cluster}"
    findings: list[Finding] = []
    wanted = Wanted(tuple(inputs.files), tuple(folders), tuple(sorted(inputs.packages)))
    remedy = "see docs/operations.md, Troubleshooting"
    if where.cluster == "auto":
        remedy = (
            "auto is for jobs on a cluster: check it there, by ray job submit … -- raypq doctor "
            "--config FILE, or name the cluster's address"
        )
    with errors(subject, remedy, findings):
        report = inspect(ClusterSettings.of(where), wanted)
        local = where.cluster == "local"
        findings += [_reached(report, subject, local=local), _room(report, where)]
        if report.authenticated and report.open_file:
            found = f"others than its owner can read {report.open_file}"
            findings.append(warn("token", found, f"chmod 600 {report.open_file}"))
        findings += [finding for node in report.nodes for finding in _node(node, report)]
        if not local:
            findings += _local_places([*inputs.files, *folders])
        return findings, report.worker_memory
    return findings, 0


def _reached(report: ClusterReport, subject: str, *, local: bool) -> Finding:
    token = "with a token" if report.authenticated else "without tokens"
    found = f"Ray {report.ray}, Python {report.python}, {len(report.nodes)} node(s), {token}"
    if report.authenticated or local:
        return ok(subject, found)
    return warn(
        subject,
        found,
        "start the cluster with RAY_AUTH_MODE=token: anyone who reaches it can run code on it",
    )


def _room(report: ClusterReport, where: WorkerSettings) -> Finding:
    """The workers that the nodes have room for, when nothing else runs there."""
    asked, room = where.workers, report.room + report.addable
    found = f"{asked} asked, room for {report.room} on nodes that are up"
    found += f", {report.addable} on nodes that may be added" if report.addable else ""
    if room >= asked:
        return ok("workers", found)
    remedy = "fewer threads, gpus_per_worker or memory_per_worker below where, or more nodes"
    if not room:
        return fail("workers", found, remedy)
    return warn("workers", found, f"workers: {room} below where; or {remedy}")


def _node(node: NodeReport, report: ClusterReport) -> Iterator[Finding]:
    """The findings of one node; one ``ok`` where there is nothing else."""
    subject = f"node {node.name}"
    problems = list(_problems(node, report, subject))
    if problems:
        yield from problems
        return
    cpus, gpus = (node.resources.get(name, 0.0) for name in ("CPU", "GPU"))
    devices = f"{cpus:g} CPUs" + (f", {gpus:g} GPUs" if gpus else "")
    yield ok(subject, f"raypq {node.raypq}, native kernels, {devices}; reaches every place")


def _problems(node: NodeReport, report: ClusterReport, subject: str) -> Iterator[Finding]:
    if node.problem:
        yield fail(subject, node.problem, f"is raypq installed there? {_ONE_VERSION}")
        return
    if (node.raypq, node.python) != (report.raypq, report.python):
        found = (
            f"raypq {node.raypq} on Python {node.python}, here {report.raypq} on {report.python}"
        )
        yield fail(subject, found, _ONE_VERSION)
    elif node.code != code_digest():
        found = f"raypq {node.raypq}, as here, but built from other code"
        yield warn(subject, found, "build the image and install here from one commit")
    if node.native_missing:
        yield fail(subject, node.native_missing, "build its image where a C++ compiler is")
    if node.device_problem:
        yield fail(subject, node.device_problem, "install a torch with CUDA there")
    for module in node.missing:
        yield fail(subject, f"{module} is not installed", "install it there (raypq[backbones])")
    for uri, reason in node.unreadable.items():
        yield fail(subject, f"cannot read {uri}: {reason}", _SHARED)
    for folder, refused in node.refused.items():
        for refusal in refused:
            found = f"{folder}: cannot {refusal.right}: {refusal.reason}"
            yield fail(subject, found, REMEDIES[refusal.right])


def _local_places(uris: Sequence[str]) -> list[Finding]:
    """Local paths are the same files on every node only where all of them mount these."""
    local = sorted({uri for uri in uris if is_local(uri)})
    if not local:
        return []
    found = f"{len(local)} path(s) on disks, such as {local[0]}"
    return [warn("places", found, f"they must be one shared mount on all nodes; or {_SHARED}")]
