"""Kills at random moments, of the driver, a worker or the node, while a reader never stops.

``RAYPQ_KILLS`` sets how many there are for each storage (the short version: 3; the full one,
marked slow: 100). Nothing is lost, nothing is doubled, no version is partial, every night ends.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import night
import psutil
import pytest
from weed import seaweedfs

from raypq.data.store import snapshot
from raypq.distributed.worker_actor import PROCESS_TITLE
from raypq.stages.stores import garbage

pytestmark = pytest.mark.ray
SCRIPT = Path(night.__file__)
FEW, MANY = 3, int(os.environ.get("RAYPQ_KILLS", "100"))
_NIGHT = 600.0  # seconds within which a night must end, kills and all


class Part:
    """One process of the play, spoken to line by line."""

    def __init__(self, *words: str) -> None:
        path = os.pathsep.join([str(SCRIPT.parent), *filter(None, sys.path)])
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            # A token file of this user would lock the drivers out of a cluster that has none.
            env={**os.environ, "PYTHONPATH": path, "RAY_AUTH_MODE": "disabled"},
        )

    def tell(self, line: str = "") -> None:
        assert self.process.stdin
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def close(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextmanager
def part(*words: str) -> Iterator[Part]:
    one = Part(*words)
    try:
        yield one
    finally:
        one.close()


class Play:
    """Nights of work, with a kill now and then; ``killed`` counts them by what was hit."""

    def __init__(self, store: str, folder: Path, kills: int, keeper: Part, drivers: Part) -> None:
        self._store, self._folder, self._left = store, folder, kills
        self._keeper, self._drivers = keeper, drivers
        self._dice = random.Random(kills)
        self._attempt = 0
        self.killed: Counter[str] = Counter()
        self.nights = 0
        self._last = ""
        self._calm = 0.0  # seconds of a night without kills, on this machine, under its load

    def run(self) -> None:
        left, self._left = self._left, 0
        start = time.monotonic()
        self.nights += 1
        self._night(self.nights)
        self._calm, self._left = time.monotonic() - start, left
        while self._left > 0:
            self.nights += 1
            self._night(self.nights)

    def _night(self, number: int) -> None:
        start = time.monotonic()
        while not self._try(number):
            assert time.monotonic() - start < _NIGHT, f"night {number}: {self._last}"
        known = snapshot.versions(self._store)
        assert known == list(range(1, number + 1)), "the work of one night is one version"

    def _try(self, number: int) -> bool:
        """One driver, from its start to its end; True if it finished the night."""
        self._attempt += 1
        answer = self._folder / str(self._attempt)
        self._drivers.tell(f"{number} {self._attempt}")
        driver = psutil.Process(int(self._drivers.hear()))
        start = time.monotonic()
        wait = self._dice.uniform(0.0, self._calm)
        while runs(driver):
            if self._left > 0 and time.monotonic() - start > wait:
                hit = self._kill(driver)
                self._left -= hit
                window = self._calm if hit else 0.5
                start, wait = time.monotonic(), self._dice.uniform(0.0, window)
            time.sleep(0.01)
        assert self._drivers.hear() == "gone"
        self._last = answer.read_text() if answer.exists() else "killed"
        return self._last == "finished"

    def _kill(self, driver: psutil.Process) -> bool:
        # Workers are there for a part of the time only: what was hit least comes next.
        kinds = self._dice.sample(["driver", "worker", "node"], 3)
        what = min(kinds, key=lambda kind: self.killed[kind])
        if what == "node":
            self._keeper.tell()
            assert self._keeper.hear() == "replaced"
        else:
            victims = [driver] if what == "driver" else workers(self._keeper.process.pid)
            if not victims:
                return False
            try:
                self._dice.choice(victims).send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                return False
        self.killed[what] += 1
        return True


def runs(process: psutil.Process) -> bool:
    """False for a zombie too, and for one that goes while it is asked."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def workers(keeper: int) -> list[psutil.Process]:
    """The processes of the cluster in which workers are."""
    found = []
    for process in psutil.Process(keeper).children(recursive=True):
        try:
            if " ".join(process.cmdline()).startswith(PROCESS_TITLE):
                found.append(process)
        except psutil.Error:
            continue
    return found


def play(store: str, folder: Path, kills: int) -> None:
    answers, report = folder / "answers", folder / "report"
    answers.mkdir(parents=True)
    start = time.monotonic()
    with part("reader", store, str(report)) as _, part("keeper") as keeper:
        address = keeper.hear()
        with part("drivers", store, address, str(answers)) as drivers:
            scene = Play(store, answers, kills, keeper, drivers)
            scene.run()
    seconds = time.monotonic() - start
    check(store, scene.nights)
    first, *wrong = report.read_text().splitlines()
    looks, whole = map(int, first.split())
    assert not wrong, wrong[:5]
    assert looks > 10
    print(
        f"\n{store}: {scene.killed.total()} kills {dict(scene.killed)} in {seconds:.0f} s, "
        f"{scene.nights} nights, {looks} looks of the reader ({whole} at every row)"
    )
    assert scene.killed.total() == kills


def check(store: str, nights: int) -> None:
    """Every version of every night, row by row, before and after the garbage is gone."""
    for number in range(1, nights + 1):
        found = snapshot.read(store, number)
        snapshot.verify_content(store, found)
        rows = night.rows_of(store, found)
        assert len(rows) == len(set(rows)) == night.SHARDS * night.ROWS, "lost or doubled"
        assert rows == night.expected(number)
    runs = [snapshot.read(store, number).run_id for number in range(1, nights + 1)]
    assert len(set(runs)) == nights
    garbage.collect(store, older_than_days=-1, remove=True)
    for number in range(1, nights + 1):
        snapshot.verify_sizes(store, snapshot.read(store, number))


def test_a_few_kills_on_local_files(tmp_path: Path) -> None:
    play(str(tmp_path / "store"), tmp_path, FEW)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_many_kills_on_local_files(tmp_path: Path) -> None:
    play(str(tmp_path / "store"), tmp_path, MANY)


@pytest.mark.slow
def test_a_few_kills_on_seaweedfs(tmp_path: Path) -> None:
    with seaweedfs(tmp_path / "weed") as bucket:
        play(f"{bucket}/few", tmp_path, FEW)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_many_kills_on_seaweedfs(tmp_path: Path) -> None:
    with seaweedfs(tmp_path / "weed") as bucket:
        play(f"{bucket}/many", tmp_path, MANY)
