"""Functions that run in step on Ray Train: a process per worker, in one torch process group.

After a worker died, Ray starts all workers anew and the function resumes from its own checkpoints.
Ray's checkpoints are not used: they are pickles, and training without Ray would need a second kind.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from threading import Event, Thread
from typing import Any

import pyarrow.fs
import ray
from fsspec import AbstractFileSystem
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from raypq import kernels
from raypq.config import ClusterSettings
from raypq.data.storage import filesystem
from raypq.distributed.errors import ClusterError, reason_of
from raypq.errors import RaypqError
from raypq.execution.executor import MAX_TRIES, Rank, Report, SpmdJob
from raypq.execution.retries import is_transient

_POLL = 0.5  # seconds between reads of the workers' events
_STARTS = 3  # attempts to start the group of workers; they share the start timeout
_START_TIMEOUT_VARIABLE = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"


class TrainingEvents:
    """Actor that holds the workers' events for the driver, and the error that ends the run."""

    def __init__(self) -> None:
        self._events: list[Mapping[str, Any]] = []
        self._fatal: RaypqError | None = None

    def put(self, event: Mapping[str, Any]) -> None:
        """Adds an event."""
        self._events.append(event)

    def fail(self, error: RaypqError) -> None:
        """Sets the error that ends the run; the first one counts."""
        self._fatal = self._fatal or error

    def fatal(self) -> RaypqError | None:
        """The error that ends the run, if there is one."""
        return self._fatal

    def take(self) -> list[Mapping[str, Any]]:
        """The events since the last call."""
        events, self._events = self._events, []
        return events


def run_spmd(job: SpmdJob, settings: ClusterSettings, resources: dict[str, float]) -> None:
    """Runs a function in step in all workers, each of which has these ``resources``.

    Raises:
        RaypqError: as raised by a worker.
        ClusterError: workers cannot start, or keep dying.
    """
    events: Any = ray.remote(num_cpus=0)(TrainingEvents).remote()
    fs, path = filesystem(job.scratch)
    trainer = _trainer(job, settings, resources, events, fs, path)
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    with _forwarded(events, job.report), _start_timeout(settings.start_timeout / _STARTS):
        try:
            trainer.fit()
        except Exception as error:  # Ray Train wraps the errors of workers in its own
            _raise_fatal(events)
            raise ClusterError(f"training on Ray failed: {reason_of(error)}") from error
        else:
            _raise_fatal(events)  # workers that start after a fatal error end without one
        finally:
            with suppress(FileNotFoundError):
                fs.rm(path, recursive=True)


def _trainer(
    job: SpmdJob,
    settings: ClusterSettings,
    resources: dict[str, float],
    events: Any,
    fs: AbstractFileSystem,
    path: str,
) -> TorchTrainer:
    """The trainer, which calls ``_run_rank`` in each worker."""
    gpu = job.device == "cuda"
    return TorchTrainer(
        _run_rank,
        train_loop_config={
            "run": ray.put(job.run),
            "events": events,
            "threads": settings.threads,
            "device": job.device,
        },
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=settings.workers,
            use_gpu=gpu,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name=f"train-{time.time_ns()}",
            storage_path=path,
            storage_filesystem=pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs)),
            failure_config=FailureConfig(
                max_failures=MAX_TRIES,
                controller_failure_limit=_STARTS - 1,  # type: ignore[call-arg]  # of version 2
            ),
        ),
    )


@contextmanager
def _forwarded(events: Any, report: Report) -> Iterator[None]:
    """Forwards the workers' events from a thread; at the end, all that are left."""
    over = Event()
    listener = Thread(
        target=_forward, args=(events, report, over), name="raypq-events", daemon=True
    )
    listener.start()
    try:
        yield
    finally:
        over.set()
        listener.join()
        with suppress(RayError):
            ray.kill(events)


@contextmanager
def _start_timeout(seconds: float) -> Iterator[None]:
    """Sets Ray Train's start timeout, for which it has an environment variable only."""
    os.environ[_START_TIMEOUT_VARIABLE] = str(seconds)
    try:
        yield
    finally:
        os.environ.pop(_START_TIMEOUT_VARIABLE, None)


def _raise_fatal(events: Any) -> None:
    """Raises the error that a worker ended the run with, if one did."""
    fatal: RaypqError | None = ray.get(events.fatal.remote())
    if fatal is not None:
        raise fatal from None


def _forward(events: Any, report: Report, over: Event) -> None:
    """Forwards events until ``over`` is set, then once more."""
    last = False
    while not last:
        last = over.wait(_POLL)
        try:
            batch = ray.get(events.take.remote())
        except RayError:
            return
        for event in batch:
            report(event)


def _run_rank(config: dict[str, Any]) -> None:
    """One worker's part; runs in its process."""
    events = config["events"]
    fatal = ray.get(events.fatal.remote())
    if fatal is not None:
        return  # Ray restarted the workers, but the error would recur
    context = ray.train.get_context()
    kernels.set_threads(config["threads"])
    run: Callable[[Rank, Report], None] = ray.get(config["run"])
    kernels.apply_thread_limit()  # if that was the first import of torch
    try:
        kernels.check_device(config["device"])
        rank = Rank(
            rank=context.get_world_rank(),
            world_size=context.get_world_size(),
            device=str(get_device()) if config["device"] == "cuda" else "cpu",
        )
        run(rank, lambda event: ray.get(events.put.remote(event)))
    except RaypqError as error:
        ray.get(events.fail.remote(error))
        raise
    except Exception as error:
        if not is_transient(error):  # a restart would fail in the same way
            ray.get(events.fail.remote(ClusterError(f"{type(error).__name__}: {error}")))
        raise
