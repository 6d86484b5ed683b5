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
from raypq.stages.stores import garbage

COMMITTER = Path(__file__).with_name("committer.py")


def race(store: str, writers: int, commits: int, *more: str) -> dict[int, list[str]]:
    """Runs the writers and reads all the while; gives each version's run and shards as its writer
    was told. With ``grow``, a gc is at work all the while, too."""
    processes = [
        subprocess.Popen(
            [sys.executable, str(COMMITTER), store, f"writer{writer}", str(commits), *more],
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
            latest = snapshot.read(store)
            assert latest.version >= seen
            assert len([*latest.shards]) == len(latest.shards)
            if more:
                garbage.collect(store, older_than_days=-1, remove=True)
        time.sleep(0.02)
    told: list[list[str]] = []
    for process in processes:
        out, errors = process.communicate()
        assert process.returncode == 0, errors[-2000:]
        told += [line.split() for line in out.splitlines()]
    assert len({version for version, *_ in told}) == len(told), "two writers hold one version"
    return {int(version): held for version, *held in told}


def check(store: str, told: dict[int, list[str]], runs: int) -> None:
    assert snapshot.versions(store) == list(range(1, runs + 1))
    found = {version: snapshot.read(store, version) for version in range(1, runs + 1)}
    assert told == {
        version: [one.run_id, ",".join(item.shard for item in one.shards)]
        for version, one in found.items()
    }
    assert set(Counter(run for run, _ in told.values()).values()) == {1}, "a run is there twice"
    assert [one.parent for one in found.values()] == [None, *range(1, runs)]


def test_six_writers_of_fifteen_versions_on_local_files(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    check(store, race(store, writers=6, commits=15), 90)
    assert not [path for path in Path(store, "snapshots").iterdir() if path.suffix != ".json"]


def test_four_writers_that_share_manifests_beside_gc(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    check(store, race(store, 4, 12, "grow"), 48)
    named = {
        item.path
        for number in range(1, 49)
        for item in snapshot.read(store, number).shards.manifests
    }
    garbage.collect(store, older_than_days=-1, remove=True)
    files = {f"manifests/{path.name}" for path in Path(store, "manifests").iterdir()}
    assert files == named
    last = snapshot.read(store).shards
    assert len(named) > len(last.manifests), "some were written anew as one"


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
