"""The rules of the Pod Security Standard "restricted", which include those of "baseline".

Kubernetes publishes them: https://kubernetes.io/docs/concepts/security/pod-security-standards/
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# Baseline.
SELINUX = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
SYSCTLS = {
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
}  # fmt: skip
# Restricted.
VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim",
    "projected", "secret",
}  # fmt: skip
PROFILES = {"RuntimeDefault", "Localhost"}


def violations(pod: dict[str, Any]) -> list[str]:
    """What an admission controller would refuse of a pod's ``spec``."""
    return [*_of_pod(pod), *(found for one in containers(pod) for found in _of_container(pod, one))]


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    """Containers of every kind."""
    kinds = ("initContainers", "containers", "ephemeralContainers")
    return [container for kind in kinds for container in pod.get(kind, [])]


def _of_pod(pod: dict[str, Any]) -> Iterator[str]:
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(name):
            yield name
    context = pod.get("securityContext", {})
    for sysctl in context.get("sysctls", []):
        if sysctl["name"] not in SYSCTLS:
            yield f"sysctl {sysctl['name']}"
    for volume in pod.get("volumes", []):
        for kind in volume.keys() - {"name"} - VOLUMES:
            yield f"volume {volume['name']} of {kind}"
    yield from _of_context(context)


def _of_container(pod: dict[str, Any], container: dict[str, Any]) -> Iterator[str]:
    name, own = container["name"], container.get("securityContext", {})
    both = {**pod.get("securityContext", {}), **own}
    if own.get("privileged"):
        yield f"{name}: privileged"
    if own.get("procMount", "Default") != "Default":
        yield f"{name}: procMount"
    if any(port.get("hostPort") for port in container.get("ports", [])):
        yield f"{name}: hostPort"
    capabilities = own.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", []):
        yield f"{name}: capabilities are not dropped"
    if {*capabilities.get("add", [])} - {"NET_BIND_SERVICE"}:
        yield f"{name}: capabilities are added"
    if own.get("allowPrivilegeEscalation") is not False:
        yield f"{name}: allowPrivilegeEscalation"
    if both.get("runAsNonRoot") is not True:
        yield f"{name}: runAsNonRoot"
    if both.get("seccompProfile", {}).get("type") not in PROFILES:
        yield f"{name}: seccompProfile"
    yield from (f"{name}: {found}" for found in _of_context(own))


def _of_context(context: dict[str, Any]) -> Iterator[str]:
    """Rules of both kinds of security contexts."""
    if context.get("runAsUser") == 0:
        yield "runAsUser 0"
    if context.get("runAsNonRoot") is False:
        yield "runAsNonRoot false"
    if context.get("windowsOptions", {}).get("hostProcess"):
        yield "hostProcess"
    if context.get("seccompProfile", {}).get("type") == "Unconfined":
        yield "seccompProfile Unconfined"
    if context.get("appArmorProfile", {}).get("type") == "Unconfined":
        yield "appArmorProfile Unconfined"
    options = context.get("seLinuxOptions", {})
    if options.get("type", "") not in SELINUX or options.get("user") or options.get("role"):
        yield "seLinuxOptions"
