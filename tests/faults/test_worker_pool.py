"""The pool of Ray workers under faults: what is lost, what is done twice, what is said."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from raypq.config import ClusterSettings
from raypq.errors import InputError
from raypq.execution.executor import TaskResult

pytestmark = pytest.mark.ray
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
WHERE = ClusterSettings(cluster="local", workers=2, threads=1)


@pytest.fixture(scope="module")
def executor() -> Iterator[Any]:
    from raypq.distributed.cluster import connect

    with pytest.MonkeyPatch.context() as patch:
        # The workers of this file are found by name, as those of raypq are.
        patch.setenv("PYTHONPATH", ENV["PYTHONPATH"])
        with connect(WHERE) as executor:
            yield executor


@dataclass(frozen=True)
class Job:
    name: str
    what: str = "ok"
    seconds: float = 0.0


class Diary:
    """A worker that notes each call in a file of its own: name, process, time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def run(self, job: Job) -> Any:
        mark = self._folder / f"{job.name}.{time.monotonic_ns()}"
        mark.write_text(str(os.getpid()))
        if job.what == "poison":
            os.kill(os.getpid(), signal.SIGKILL)
        if job.what == "exit":
            sys.exit(3)
        time.sleep(job.seconds)
        if job.what == "os":
            raise OSError(5, "the disk is gone")
        if job.what == "flaky" and len(calls(self._folder)[job.name]) < 3:
            raise OSError(5, "for a moment")
        if job.what == "bug":
            raise ZeroDivisionError("a bug")
        if job.what == "slow":
            time.sleep(3.0)
        if job.what == "bad":
            raise InputError(job.name, expected="good input", found="bad input")
        if job.what == "unsendable":
            return threading.Lock()
        mark.rename(mark.with_suffix(mark.suffix + ".done"))
        return os.getpid()


def calls(folder: Path, ending: str = "") -> dict[str, list[str]]:
    """The process of each call (finished ones alone: ``.done``), by name."""
    found: dict[str, list[str]] = {}
    for mark in sorted(folder.glob(f"*{ending}")):
        try:
            process = mark.read_text()
        except FileNotFoundError:  # finished since it was listed
            process = mark.with_name(f"{mark.name}.done").read_text()
        found.setdefault(mark.name.split(".")[0], []).append(process)
    return found


def jobs(n: int, seconds: float = 0.0, **special: str) -> list[Job]:
    return [
        Job(f"job{i}", special.get(f"job{i}", "ok"), seconds if f"job{i}" not in special else 0)
        for i in range(n)
    ]


def sort(outcomes: list[TaskResult]) -> tuple[set[int], dict[int, Any]]:
    """Tasks with a result and those that failed; each task exactly once."""
    count = Counter(outcome.index for outcome in outcomes)
    assert set(count.values()) <= {1}, "an outcome twice"
    failed = {outcome.index: outcome.failure for outcome in outcomes if outcome.failure}
    return set(count) - set(failed), failed


def test_a_dead_worker_is_named_with_its_node_and_shard(
    executor: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with executor.start_workers(Diary, tmp_path, stage="test") as pool:
        outcomes = list(pool.map(Diary.run, jobs(1, job0="poison")))
    (process, *others) = calls(tmp_path)["job0"]
    died = [text for text in caplog.messages if "a worker died" in text]
    assert len(died) == 1 + len(others) == 3, caplog.text
    assert f"process {process} on node {socket.gethostname()}" in died[0]
    assert "at work on job0)" in died[0]
    _, failed = sort(outcomes)
    assert f"its worker died (process {others[-1]} on node" in failed[0].reason


def test_room_for_fewer_workers_is_a_warning(
    executor: Any, caplog: pytest.LogCaptureFixture
) -> None:
    from raypq.distributed.cluster import RayExecutor

    with RayExecutor(WHERE.model_copy(update={"workers": 8})).start_workers(dict, stage="test"):
        pass
    assert "asked for 8 workers, but the cluster has room for 2" in caplog.text
    caplog.clear()
    with executor.start_workers(dict, stage="test"):
        pass
    assert caplog.text == ""


def test_a_killed_worker_loses_nothing_and_repeats_nothing_finished(
    executor: Any, tmp_path: Path
) -> None:
    outcomes: list[TaskResult] = []
    with executor.start_workers(Diary, tmp_path, stage="test") as pool:
        for outcome in pool.map(Diary.run, jobs(24, 0.1)):
            outcomes.append(outcome)
            if len(outcomes) in (4, 10):
                os.kill(outcome.value, signal.SIGKILL)
    done, failed = sort(outcomes)
    assert done == set(range(24))
    assert not failed
    finished = calls(tmp_path, ".done")
    assert len(finished) == 24
    assert all(len(times) == 1 for times in finished.values()), "a finished task was done again"


@pytest.mark.slow
def test_a_crash_costs_less_than_five_seconds_of_forty_shards(
    executor: Any, tmp_path: Path
) -> None:
    calm, disturbed = tmp_path / "calm", tmp_path / "disturbed"
    seconds = {}
    for folder in (calm, disturbed):
        folder.mkdir()
        with executor.start_workers(Diary, folder, stage="test") as pool:
            list(pool.map(Diary.run, jobs(2)))  # the workers are there
            start, outcomes = time.monotonic(), []
            for outcome in pool.map(Diary.run, jobs(40, 0.1)):
                outcomes.append(outcome)
                if folder is disturbed and len(outcomes) == 10:
                    os.kill(outcome.value, signal.SIGKILL)
            seconds[folder.name] = time.monotonic() - start
        done, failed = sort(outcomes)
        assert done == set(range(40))
        assert not failed
    print(f"40 shards: {seconds}")
    assert seconds["disturbed"] - seconds["calm"] < 5.0


@pytest.mark.parametrize("how", ["poison", "exit"])
def test_a_task_that_kills_its_worker_is_named_after_three_tries(
    executor: Any, tmp_path: Path, how: str
) -> None:
    with executor.start_workers(Diary, tmp_path, stage="test") as pool:
        done, failed = sort(list(pool.map(Diary.run, jobs(12, 0.02, job5=how))))
    assert done == set(range(12)) - {5}
    assert failed[5].shard == "job5"
    assert failed[5].tries == 3
    assert not failed[5].bad_input
    assert "worker died" in failed[5].reason
    # Three deaths are charged to it. The first may take along answers of tasks before it (a loaded
    # machine sends them late), and be charged to one of these; after that each runs alone.
    again = sum(map(len, calls(tmp_path, ".done").values())) - 11
    assert again >= 0
    assert len(calls(tmp_path)["job5"]) == 3 + (again > 0)


def test_passing_errors_are_tried_again_and_bad_input_is_not(executor: Any, tmp_path: Path) -> None:
    special = {"job1": "os", "job2": "flaky", "job3": "bad", "job4": "unsendable", "job7": "bug"}
    with executor.start_workers(Diary, tmp_path, stage="test") as pool:
        done, failed = sort(list(pool.map(Diary.run, jobs(8, **special))))
    assert done == {0, 2, 5, 6}
    tries = {name: len(times) for name, times in calls(tmp_path).items()}
    assert tries["job1"] == tries["job2"] == 3
    assert tries["job3"] == tries["job4"] == tries["job7"] == 1
    assert (failed[1].tries, failed[1].bad_input) == (3, False)
    assert "OSError" in failed[1].reason
    assert "the disk is gone" in failed[1].reason
    assert (failed[3].tries, failed[3].bad_input) == (1, True)
    assert failed[3].reason == "job3: expected good input, found bad input"
    assert not failed[4].bad_input
    assert "lock" in failed[4].reason
    assert (failed[7].tries, failed[7].bad_input) == (1, False)
    assert failed[7].reason == "ZeroDivisionError: a bug"


@pytest.mark.parametrize("what", ["slow", "poison", "flaky"])
def test_an_ordered_pass_stays_near_the_oldest_task(
    executor: Any, tmp_path: Path, what: str
) -> None:
    """However it is held up: by a slow task, one that kills its workers, or one tried again."""
    ahead = []
    with executor.start_workers(Diary, tmp_path, stage="test") as pool:
        list(pool.map(Diary.run, jobs(4)))
        for mark in tmp_path.iterdir():
            mark.unlink()
        outcomes = []
        for outcome in pool.map(Diary.run, jobs(120, job3=what), ordered=True):
            outcomes.append(outcome)
            if outcome.index == 3:
                ahead = [int(name.removeprefix("job")) for name in calls(tmp_path)]
    assert [outcome.index for outcome in outcomes] == list(range(120))
    failed = {outcome.index for outcome in outcomes if outcome.failure}
    assert failed == ({3} if what == "poison" else set())
    assert max(ahead) <= 3 + 16 * 2


def test_tasks_at_home_with_one_worker_are_shared_near_the_oldest(
    executor: Any, tmp_path: Path
) -> None:
    """All tasks were done by the first worker; an ordered pass cannot wait until it is through."""
    with executor.start_workers(SlowToStart, tmp_path, stage="test") as pool:
        list(pool.map(SlowToStart.run, jobs(100)))
        deadline = time.monotonic() + 60
        while len(pool.ready) < 2 and time.monotonic() < deadline:
            list(pool.map(SlowToStart.run, jobs(1)))
        shared = [
            outcome.value for outcome in pool.map(SlowToStart.run, jobs(100, 0.01), ordered=True)
        ]
    assert len(set(shared)) == 2
    assert min(Counter(shared).values()) >= 20


class Broken:
    def __init__(self, folder: Path, error: Exception) -> None:
        (folder / str(time.monotonic_ns())).touch()
        raise error

    def run(self, job: Job) -> None: ...


@pytest.mark.parametrize(
    ("error", "starts", "told"),
    [
        (OSError(5, "no such driver"), 5, "OSError: [Errno 5] no such driver"),
        (ModuleNotFoundError("no timm"), 2, "ModuleNotFoundError: no timm"),
        (InputError("m", expected="a model", found="none"), 2, "m: expected a model, found none"),
    ],
)
def test_workers_that_cannot_start_end_the_job(
    executor: Any, tmp_path: Path, error: Exception, starts: int, told: str
) -> None:
    from raypq.distributed.cluster import ClusterError

    with (
        executor.start_workers(Broken, tmp_path, error, stage="test") as pool,
        pytest.raises(ClusterError) as caught,
    ):
        list(pool.map(Broken.run, jobs(2)))
    assert told in str(caught.value)
    assert len(list(tmp_path.iterdir())) <= starts


class DiesAtBirth:
    def __init__(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def test_workers_that_die_while_starting_end_the_job(executor: Any) -> None:
    from raypq.distributed.cluster import ClusterError

    with (
        executor.start_workers(DiesAtBirth, stage="test") as pool,
        pytest.raises(ClusterError, match="cannot start"),
    ):
        list(pool.map(Diary.run, jobs(2)))


def test_a_consumer_that_leaves_does_not_pollute_the_next_pass(
    executor: Any, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    with executor.start_workers(Route, tmp_path, stage="test") as pool:
        kept = pool.map(Route.run, [Job(f"first-{i}", seconds=0.3) for i in range(20)])
        next(kept)  # the generator lives on, as one held by a traceback does
        done, failed = sort(list(pool.map(Route.run, [Job(f"second-{i}") for i in range(20)])))
        assert not list(kept), "the first pass is over"
        time.sleep(0.5)
    assert done == set(range(20))
    assert not failed
    assert len(list(first.iterdir())) <= 5, "tasks that nobody waits for were still begun"
    assert len(list(second.iterdir())) == 20


class Route:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def run(self, job: Job) -> int:
        place, _, name = job.name.partition("-")
        (self._folder / place / name).touch()
        time.sleep(job.seconds)
        return os.getpid()


def test_a_worker_that_dies_between_passes_is_replaced(executor: Any, tmp_path: Path) -> None:
    with executor.start_workers(Diary, tmp_path, stage="test") as pool:
        results = {outcome.value for outcome in pool.map(Diary.run, jobs(6, 0.1))}
        for pid in results:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.5)
        done, failed = sort(list(pool.map(Diary.run, jobs(6))))
    assert done == set(range(6))
    assert not failed


def test_the_shared_value_is_that_of_the_pass(executor: Any) -> None:
    with executor.start_workers(Echo, stage="test") as pool:
        for shared in (({"pass": 1},), (), (None,), ({"pass": 2}, 3)):
            assert all(one.value == shared for one in pool.map(Echo.run, jobs(3), *shared))


class Echo:
    def run(self, job: Job, *shared: Any) -> Any:
        return shared


class SlowToStart(Diary):
    """All but the first of a folder take their time to start."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        try:
            (folder / "first").mkdir()
        except FileExistsError:
            time.sleep(2.0)


def test_a_worker_that_came_late_gets_its_part_of_the_next_pass(
    executor: Any, tmp_path: Path
) -> None:
    """The first one did all of the first pass, and would keep it where tasks go home."""
    with executor.start_workers(SlowToStart, tmp_path, stage="test") as pool:
        alone = Counter(outcome.value for outcome in pool.map(SlowToStart.run, jobs(2)))
        deadline = time.monotonic() + 60
        while len(pool.ready) < 2 and time.monotonic() < deadline:
            list(pool.map(SlowToStart.run, jobs(1)))  # takes in who has started
        shared = Counter(outcome.value for outcome in pool.map(SlowToStart.run, jobs(2, 0.2)))
        again = Counter(outcome.value for outcome in pool.map(SlowToStart.run, jobs(2, 0.2)))
    assert list(alone.values()) == [2]
    assert list(shared.values()) == [1, 1]
    assert list(again.values()) == [1, 1]


_DRIVER = """
import sys
from pathlib import Path
from test_worker_pool import Diary, jobs
from raypq.config import ClusterSettings
from raypq.distributed.cluster import connect
with (
    connect(ClusterSettings(workers=2)) as executor,
    executor.start_workers(Diary, Path(sys.argv[1]), stage="test") as pool,
):
    for outcome in pool.map(Diary.run, jobs(1000, 0.2)):
        print(outcome.value, flush=True)
"""


@pytest.mark.parametrize(
    "how",
    [
        signal.SIGINT,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_driver_leaves_no_workers(tmp_path: Path, how: signal.Signals) -> None:
    command = [sys.executable, "-c", _DRIVER, str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV
    ) as driver:
        assert driver.stdout
        workers = {int(driver.stdout.readline()) for _ in range(4)}
        expected_gone = [psutil.Process(pid) for pid in workers]
        if how != signal.SIGKILL:  # nobody is left to end the local Ray; it goes by itself later
            expected_gone += psutil.Process(driver.pid).children(recursive=True)
        driver.send_signal(how)
        driver.communicate(timeout=600)  # only so that a hang ends
    _, alive = psutil.wait_procs(expected_gone, timeout=20)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    assert driver.returncode


@pytest.mark.slow
def test_a_lost_node_loses_nothing(tmp_path: Path) -> None:
    """In a process of its own: the cluster here has several nodes, and one goes away."""
    command = [sys.executable, "-c", _NODE_LOSS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=ENV)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "indices 40 failures 0" in done.stdout
    cost = float(done.stdout.split("cost ")[1].split()[0])
    print(f"the loss of a node cost {cost:.1f} s")
    assert cost < 20.0, "seconds, under Ray's default health checks"
    finished = calls(tmp_path, ".done")
    assert len(finished) == 40
    assert all(len(times) == 1 for times in finished.values())


_NODE_LOSS = """
import sys
import time
from pathlib import Path
from test_worker_pool import Diary, jobs
import ray
from ray.cluster_utils import Cluster
from raypq.config import ClusterSettings
from raypq.distributed.cluster import connect
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
extra = cluster.add_node(num_cpus=1)
where = ClusterSettings(cluster=cluster.address, workers=2)
seen, failures, workers = [], 0, set()
place = Path(sys.argv[1])
(place / "calm").mkdir()
with connect(where) as executor:
    with executor.start_workers(Diary, place / "calm", stage="test") as pool:
        list(pool.map(Diary.run, jobs(4, 0.5)))
        start = time.monotonic()
        list(pool.map(Diary.run, jobs(40, 0.1)))
        calm = time.monotonic() - start
with connect(where) as executor, executor.start_workers(Diary, place, stage="test") as pool:
    list(pool.map(Diary.run, jobs(0)))
    start = None
    for outcome in pool.map(Diary.run, jobs(40, 0.1)):
        start = start or time.monotonic()
        seen.append(outcome.index)
        failures += outcome.failure is not None
        workers.add(outcome.value)
        if len(workers) == 2 and extra is not None:
            cluster.remove_node(extra, allow_graceful=False)
            extra = None
            cluster.add_node(num_cpus=1)
cost = time.monotonic() - start - calm
assert len(seen) == len(set(seen))
print("indices", len(seen), "failures", failures, "cost", cost)
cluster.shutdown()
"""
