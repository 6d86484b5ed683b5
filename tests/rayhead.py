"""A Ray head of its own for tests: token authentication on, everything on the loopback."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

RAY = (sys.executable, "-m", "ray.scripts.scripts")
_START = 300.0  # seconds; twenty on a free machine


@dataclass(frozen=True, kw_only=True)
class RayHead:
    """Addresses of a running head; ``environment`` lets a client in."""

    address: str
    dashboard: str
    metrics: str
    environment: dict[str, str]


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        servers = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)
        ]
        return [server.getsockname()[1] for server in servers]


@contextmanager
def ray_head(cpus: int = 2, extra: dict[str, str] | None = None) -> Iterator[RayHead]:
    """Starts ``ray start --head`` as the docs say, waits for its dashboard, and stops it."""
    port, dashboard, metrics, agent, client, grpc, runtime = _free_ports(7)
    # A job's ``python`` is the first one on its head's PATH, and that must be the one with raypq.
    interpreter = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "PATH": interpreter + os.pathsep + os.environ.get("PATH", os.defpath),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_agent_register_timeout_ms": "120000",  # 30 s is little on a busy machine
        "RAY_raylet_start_wait_time_s": "280",
        "RAY_health_check_timeout_ms": "60000",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_DISABLE_DOCKER_CPU_WARNING": "1",
        **(extra or {}),
    }
    environment.pop("RAY_ADDRESS", None)
    head = RayHead(
        address=f"127.0.0.1:{port}",
        dashboard=f"http://127.0.0.1:{dashboard}",
        metrics=f"http://127.0.0.1:{metrics}/metrics",
        environment=environment,
    )
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:  # sockets: a short path
        command = [
            *RAY, "start", "--head", "--block", "--disable-usage-stats",
            "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1",
            f"--port={port}", f"--dashboard-port={dashboard}",
            f"--ray-client-server-port={client}", f"--metrics-export-port={metrics}",
            f"--dashboard-agent-listen-port={agent}", f"--num-cpus={cpus}",
            # Ports that are known need not be waited for; on a busy machine Ray gives that up.
            f"--dashboard-agent-grpc-port={grpc}", f"--runtime-env-agent-port={runtime}",
            "--object-store-memory=200000000", f"--temp-dir={folder}/t",
        ]  # fmt: skip
        log = Path(folder, "log")
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, env=environment, stdout=out, stderr=out, start_new_session=True
            )
        try:
            _wait(head, process, log)
            yield head
        finally:
            process.send_signal(signal.SIGTERM)  # ray stops what it started
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
            with suppress(ProcessLookupError):  # what it has left, all the same
                os.killpg(process.pid, signal.SIGKILL)


def _wait(head: RayHead, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _START
    request = urllib.request.Request(
        f"{head.dashboard}/api/version",
        headers={"Authorization": f"Bearer {head.environment['RAY_AUTH_TOKEN']}"},
    )
    while time.monotonic() < end and process.poll() is None:
        if "Ray runtime started" not in log.read_text(errors="replace"):
            time.sleep(0.3)
            continue
        try:
            with urllib.request.urlopen(request, timeout=2):
                return
        except OSError:
            time.sleep(0.3)
    raise AssertionError(f"no Ray head:\n{log.read_text(errors='replace')[-2000:]}")
