"""Many writers commit to one store at once: no number is left out, no run is there twice."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import fsspec
from s3server import S3Server, reachable

from raypq.data.store import snapshot

COMMITTER = Path(__file__).with_name("committer.py")


def race(store: str, writers: int, commits: int) -> dict[int, str]:
    """Runs the writers and reads all the while; gives each version's run as its writer was told."""
    processes = [
        subprocess.Popen(
            [sys.executable, str(COMMITTER), store, f"writer{writer}", str(commits)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for writer in range(writers)
    ]
    seen = 0
    while any(process.poll() is None for process in processes):
        if known := snapshot.versions(store):
            assert known == list(range(1, known[-1] + 1)), "a reader saw a gap"
            assert known[-1] >= seen, "a version went away"
            seen = known[-1]
            assert snapshot.read(store).version >= seen
        time.sleep(0.02)
    told: list[tuple[int, str]] = []
    for process in processes:
        out, errors = process.communicate()
        assert process.returncode == 0, errors[-2000:]
        told += [(int(line.split()[0]), line.split()[1]) for line in out.splitlines()]
    assert len({version for version, _ in told}) == len(told), "two writers hold one version"
    return dict(told)


def check(store: str, told: dict[int, str], runs: int) -> None:
    assert snapshot.versions(store) == list(range(1, runs + 1))
    found = {version: snapshot.read(store, version) for version in range(1, runs + 1)}
    assert {version: one.run_id for version, one in found.items()} == told
    assert set(Counter(told.values()).values()) == {1}, "a run is there twice"
    assert [one.parent for one in found.values()] == [None, *range(1, runs)]


def test_six_writers_of_fifteen_versions_on_local_files(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    check(store, race(store, writers=6, commits=15), 90)
    assert not [path for path in Path(store, "snapshots").iterdir() if path.suffix != ".json"]


def test_four_writers_of_eight_versions_on_s3_that_loses_answers() -> None:
    """A fifth of the creates are done and not answered; the client tries them again by itself."""
    server = S3Server(lose=0.2, seed=11)
    try:
        with reachable(server.environment()):
            fsspec.filesystem("s3").mkdir("races")
            check("s3://races/store", race("s3://races/store", writers=4, commits=8), 32)
        assert server.asked["lost"] >= 4, "the test lost too few answers to show anything"
    finally:
        server.close()
