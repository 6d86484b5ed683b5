"""Training by gradient on Ray Train: one process a worker, gradients averaged by DDP.

Ray starts the workers anew after a death; they find the last checkpoint by themselves, so no more
than the epoch in hand is lost. Ray's own checkpoints are not used: they would be pickles, and
another path than the one without Ray.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from threading import Event, Thread
from typing import Any

import pyarrow.fs
import ray
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from raypq import kernels
from raypq.config import ClusterSettings
from raypq.distributed.errors import ClusterError, reason_of
from raypq.errors import RaypqError
from raypq.stages.crew import TRIES
from raypq.stages.learner import Learner, Lesson, Note
from raypq.stages.retries import may_pass
from raypq.stages.stream import Seat

_POLL = 0.5  # seconds between looks at what the workers say
_STARTS = 3  # times that a group of workers is waited for, each a part of the time for it
_START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
_RUN = "ray"  # below the checkpoints: what Ray Train itself writes


class Board:
    """An actor on which workers leave notes for the driver, and the error that ends it all."""

    def __init__(self) -> None:
        self._notes: list[Note] = []
        self._fatal: RaypqError | None = None

    def put(self, note: Note) -> None:
        """Leaves a note."""
        self._notes.append(note)

    def fail(self, error: RaypqError) -> None:
        """Leaves the error that ends it all; the first one counts."""
        self._fatal = self._fatal or error

    def fatal(self) -> RaypqError | None:
        """The error that ends it all, if there is one."""
        return self._fatal

    def take(self) -> list[Note]:
        """The notes since the last call."""
        notes, self._notes = self._notes, []
        return notes


def learn(
    lesson: Lesson,
    settings: ClusterSettings,
    resources: dict[str, float],
    tell: Callable[[Note], None],
) -> None:
    """Trains to the last checkpoint, by workers that have these ``resources`` each.

    Raises:
        RaypqError: what a worker raised on purpose.
        ClusterError: workers cannot start, or keep dying.
    """
    board: Any = ray.remote(num_cpus=0)(Board).remote()
    config = {"lesson": ray.put(lesson), "board": board, "threads": settings.threads}
    fs, path = lesson.checkpoints.beside(_RUN)
    gpu = lesson.device == "cuda"
    trainer = TorchTrainer(
        _work,
        train_loop_config=config,
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
                max_failures=TRIES,
                controller_failure_limit=_STARTS - 1,  # type: ignore[call-arg]  # of version 2
            ),
        ),
    )
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    over = Event()
    listener = Thread(target=_listen, args=(board, tell, over), name="raypq-board", daemon=True)
    listener.start()
    # Ray Train has no setting for it but this variable, which it hands on.
    os.environ[_START_TIMEOUT] = str(settings.start_timeout / _STARTS)
    try:
        trainer.fit()
    except Exception as error:  # Ray Train wraps what a worker raised in errors of its own
        _raise_fatal(board)
        raise ClusterError(f"training on Ray failed: {reason_of(error)}") from error
    else:
        _raise_fatal(board)  # the workers were started anew, and did nothing more
    finally:
        os.environ.pop(_START_TIMEOUT, None)
        over.set()
        listener.join()
        with suppress(RayError):
            ray.kill(board)
        with suppress(FileNotFoundError):
            fs.rm(path, recursive=True)


def _raise_fatal(board: Any) -> None:
    """Raises what a worker raised on purpose, if one did."""
    fatal: RaypqError | None = ray.get(board.fatal.remote())
    if fatal is not None:
        raise fatal from None


def _listen(board: Any, tell: Callable[[Note], None], over: Event) -> None:
    """Passes on what rank 0 notes, to the end."""
    last = False
    while not last:
        last = over.wait(_POLL)
        try:
            notes = ray.get(board.take.remote())
        except RayError:
            return
        for note in notes:
            tell(note)


def _work(config: dict[str, Any]) -> None:
    """One worker's part; runs in its process."""
    board = config["board"]
    fatal = ray.get(board.fatal.remote())
    if fatal is not None:
        return  # started anew after an error that would come again
    context = ray.train.get_context()
    seat = Seat(rank=context.get_world_rank(), world=context.get_world_size())
    kernels.set_threads(config["threads"])
    lesson: Lesson = ray.get(config["lesson"])
    device = str(get_device()) if lesson.device == "cuda" else "cpu"
    try:
        kernels.check_device(lesson.device)
        Learner(
            lesson=lesson,
            seat=seat,
            device=device,
            tell=lambda note: ray.get(board.put.remote(note)),
        ).run()
    except RaypqError as error:
        ray.get(board.fail.remote(error))
        raise
    except Exception as error:
        if not may_pass(error):  # the same would come of another start
            ray.get(board.fail.remote(ClusterError(f"{type(error).__name__}: {error}")))
        raise
