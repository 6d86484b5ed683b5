"""What `raypq doctor --config` finds of a Ray cluster: a head that asks for a token."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rayhead import RayHead, ray_head

from raypq.checks import Finding, check_job, nodes
from raypq.config import EncodeJob
from raypq.distributed import inspection

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    with ray_head(cpus=2) as head:
        yield head


@pytest.fixture
def client(head: RayHead, monkeypatch: pytest.MonkeyPatch) -> RayHead:
    """The head, and this process with its token."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, head.environment[name])
    return head


def findings(home: Any, cluster: str, **where: Any) -> dict[str, Finding]:
    values = {
        "model": home("old"),
        "features": [home("features")],
        "output": home("codes"),
        "where": {"cluster": cluster, "workers": 2, **where},
    }
    return {finding.subject: finding for finding in check_job(EncodeJob.parse(values))}


def test_a_cluster_that_can_run_the_job(home: Any, client: RayHead) -> None:
    found = findings(home, client.address)
    assert not [finding for finding in found.values() if finding.level == "fail"]
    assert "1 node(s), with a token" in found[f"cluster: {client.address}"].found
    assert found["workers"].found == "2 asked, room for 2 on nodes that are up"
    (node,) = [finding for subject, finding in found.items() if subject.startswith("node ")]
    assert "2 CPUs; reaches every place" in node.found
    assert found["places"].level == "warn"  # local paths, which other nodes may not have
    assert found["memory of a worker"].level == "ok"
    assert not os.path.exists(home("codes"))


def test_workers_that_do_not_fit(home: Any, client: RayHead) -> None:
    found = findings(home, client.address, workers=8)["workers"]
    assert (found.level, found.found) == ("warn", "8 asked, room for 2 on nodes that are up")
    found = findings(home, client.address, workers=1, gpus_per_worker=1)["workers"]
    assert found.level == "fail"
    assert "gpus_per_worker" in found.remedy
    found = findings(home, client.address, workers=1, memory_per_worker=100_000)["workers"]
    assert found.level == "fail"


def test_a_node_that_lacks_a_package_a_file_or_a_right(home: Any, client: RayHead) -> None:
    from raypq.checks.inputs import Inputs
    from raypq.checks.nodes import check_nodes
    from raypq.config import ClusterSettings

    where = ClusterSettings(cluster=client.address, workers=1)
    inputs = Inputs(files=[home("none")], packages={"no_such_package"})
    found, _ = check_nodes(where, inputs, ["/sys/kernel/codes"])
    said = [finding.found for finding in found if finding.subject.startswith("node ")]
    assert len(said) == 3
    assert said[0] == "no_such_package is not installed"
    assert said[1].startswith(f"cannot read {home('none')}")
    assert said[2].startswith("/sys/kernel/codes: cannot create")


def test_a_node_with_another_raypq(
    home: Any, client: RayHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "__version__", "9.9")
    found = findings(home, client.address)
    (node,) = [finding for subject, finding in found.items() if subject.startswith("node ")]
    assert node.level == "fail"
    assert "here 9.9" in node.found
    assert "one version everywhere" in node.remedy
    monkeypatch.undo()


def test_a_node_with_other_code_of_the_same_version(
    home: Any, client: RayHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "code_digest", lambda: "other")
    found = findings(home, client.address)
    (node,) = [finding for subject, finding in found.items() if subject.startswith("node ")]
    assert node.level == "warn"
    assert "built from other code" in node.found


def test_a_token_that_is_wrong_and_a_head_that_is_not_there(
    home: Any, client: RayHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 32)
    found = findings(home, client.address)[f"cluster: {client.address}"]
    assert found.level == "fail"
    assert "token is missing or wrong" in found.found
    found = findings(home, "127.0.0.1:1")["cluster: 127.0.0.1:1"]
    assert "cannot reach the Ray cluster" in found.found


def test_auto_is_checked_on_the_cluster(home: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    found = findings(home, "auto")["cluster: auto"]
    assert found.level == "fail"
    assert "ray job submit" in found.remedy


def test_a_local_ray_is_started_for_it(
    home: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    found = findings(home, "local", workers=1)
    token = tmp_path / ".ray" / "auth_token"  # which Ray makes
    assert token.stat().st_mode & 0o777 == 0o600
    assert "token" not in found
    assert not [finding for finding in found.values() if finding.level == "fail"]
    token.chmod(0o644)
    assert findings(home, "local", workers=1)["token"].remedy == f"chmod 600 {token}"
    python = ".".join(map(str, sys.version_info[:3]))
    assert f"Python {python}, 1 node(s)" in found["cluster: local"].found
    assert found["workers"].found == "1 asked, room for 1 on nodes that are up"
