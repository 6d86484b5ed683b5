"""Training by gradient, on the driver: scan the data, train, freeze the model.

One pass over the stores comes first. It finds bad shards, counts the rows of each class, computes
mean and variance where features are z-scored, and reads the rows held out for validation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raypq import console, machine
from raypq.config import Columns, TrainJob
from raypq.data.storage import is_local, join, local_path
from raypq.errors import InputError, ShardFailure
from raypq.execution.executor import Executor, SpmdJob, completed
from raypq.execution.run_record import RunRecord
from raypq.methods.base import ReductionMethod, TrainingSetInfo
from raypq.methods.gradient import GradientMethod, Network, seeded, tensor_of
from raypq.methods.support.class_codes import ClassCodesNetwork
from raypq.methods.support.statistics import scale
from raypq.stages.training.checkpoint import Checkpoints
from raypq.stages.training.dataset import TrainingClasses, TrainingPlan, TrainTask, training_batches
from raypq.stages.training.fit_result import FitResult
from raypq.stages.training.reduction import TrainWorker, cache_of, iterate, measure, run_pass
from raypq.stages.training.row_stream import RowSource
from raypq.stages.training.sample import draw
from raypq.stages.training.shard_groups import grouped
from raypq.stages.training.temperature import choose_temperature
from raypq.stages.training.trainer import TrainingSpec, run_rank

FOLDER = "training"  # below the model: checkpoints, until the model is saved
_SCRATCH = "ray"  # below the checkpoints: files of the executor
_MAX_SAMPLE_BYTES = 1 << 30  # of features, for ``GradientMethod.finish``


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardScan:
    """Result of one shard.

    Attributes:
        count: training rows of each class [L]. moments: n, Σx [dx] and Σx² [dx].
        X, y: rows held out for validation.
    """

    count: NDArray[np.int64]
    moments: tuple[float, NDArray[np.float64], NDArray[np.float64]]
    X: NDArray[np.float32]
    y: NDArray[np.int32]


@dataclass(kw_only=True, eq=False)
class DataScan:
    """Sum of ``ShardScan`` over the shards of a store, in their order."""

    shards: int = 0
    count: NDArray[np.int64] | int = 0
    moments: tuple[Any, ...] = (0, 0, 0)
    X: list[NDArray[np.float32]] = field(default_factory=list)
    y: list[NDArray[np.int32]] = field(default_factory=list)

    def add(self, scan: ShardScan) -> None:
        """Adds the next shard. Copies arrays, which may be views of shared memory."""
        self.shards += 1
        self.count = self.count + scan.count
        self.moments = tuple(a + b for a, b in zip(self.moments, scan.moments, strict=True))
        self.X.append(scan.X.copy())
        self.y.append(scan.y.copy())


class ScanWorker:
    """Scans shards of one store."""

    def __init__(
        self,
        columns: Columns,
        width: int,
        classes: TrainingClasses | None,
        held_out: NDArray[np.int64],
    ) -> None:
        self._columns, self._width, self._classes = columns, width, classes
        self._held_out = held_out

    def scan(self, task: TrainTask) -> ShardScan:
        """Reads one shard."""
        L = len(self._classes.chosen) if self._classes else 0
        count, n = np.zeros(L, np.int64), 0.0
        total, squares = np.zeros(self._width), np.zeros(self._width)
        X = [np.empty((0, self._width), np.float32)]
        y = [np.empty(0, np.int32)]
        for batch in training_batches(task, self._columns, self._width, self._classes):
            n += len(batch.X)
            total += batch.X.sum(axis=0, dtype=np.float64)
            squares += np.einsum("nd,nd->d", batch.X, batch.X, dtype=np.float64)
            if batch.y is not None:
                count += np.bincount(batch.y, minlength=L)
                low, high = np.searchsorted(self._held_out, [batch.row, batch.row + len(batch.X)])
                chosen = self._held_out[low:high] - batch.row
                X.append(batch.X[chosen])
                y.append(batch.y[chosen])
                np.subtract.at(count, batch.y[chosen], 1)
        moments = (n, total, squares)
        return ShardScan(count=count, moments=moments, X=np.concatenate(X), y=np.concatenate(y))


def fit_gradient(
    job: TrainJob, method: GradientMethod, plan: TrainingPlan, executor: Executor, record: RunRecord
) -> FitResult:
    """Trains a method by gradient.

    Raises:
        ConfigError: settings that do not fit the data, or a checkpoint of another training.
        InputError: a class with too few rows.
        JobError: some shards could not be used.
        DivergenceError: the loss is not finite.
    """
    method.check(plan.dataset_info, _world_size(job))
    spec, failures = _prepare(job, method, plan, executor, record)
    record.lap("plan")
    executor.run_spmd(
        SpmdJob(
            run=partial(run_rank, spec),
            report=lambda epoch: _log(job.method, epoch),
            device=job.where.device,
            scratch=join(spec.checkpoints.uri, _SCRATCH),
            memory=spec.cache_bytes + spec.shuffle_bytes,
        )
    )
    record.lap("learn")
    checkpoint = spec.checkpoints.read()
    assert checkpoint is not None, "training ends with a checkpoint"
    network = method.network(plan.dataset_info)
    network.load_state_dict(checkpoint.weights)
    if isinstance(network, ClassCodesNetwork):
        choose_temperature(network, spec)
    _finish(job, method, network, spec, executor, record)
    network.finished = checkpoint.progress.phase == len(method.phases(spec.steps))
    codebooks, codebook_record = _follow_up(job, method, network, spec, plan, executor, record)
    model = method.freeze(
        network,
        plan.dataset_info,
        scale=spec.scale,
        codebooks=codebooks,
        record={"history": checkpoint.progress.history, **codebook_record},
    )
    sources = [spec.labelled, *([spec.unlabelled] if spec.unlabelled else [])]
    images = sum(source.rows for source in sources)
    tasks = [task for source in sources for task in source.tasks]
    args = (None, job.columns, plan.dataset_info.dx, None, 0)
    with (
        executor.start_workers(TrainWorker, *args, stage="train") as pool,
        record.observe(pool),
    ):
        measured = measure(pool, tasks, model)
    return FitResult(
        model=model,
        failures=failures,
        images=images,
        measured=measured,
        held_out=spec.held_out,
        clean_up=spec.checkpoints.clear,
    )


def _world_size(job: TrainJob) -> int:
    return 1 if job.where.cluster == "none" else job.where.workers


def _prepare(
    job: TrainJob, method: GradientMethod, plan: TrainingPlan, executor: Executor, record: RunRecord
) -> tuple[TrainingSpec, list[ShardFailure]]:
    """Scans the stores; the training spec, and failures of shards that are left out."""
    dataset_info, settings = plan.dataset_info, method.settings
    rng = np.random.default_rng([settings.seed, 12])
    n_held_out = min(method.held_out_rows(dataset_info), dataset_info.N)
    held_out = np.sort(rng.choice(dataset_info.N, n_held_out, replace=False))
    labelled = RowSource(
        tasks=plan.tasks,
        columns=job.columns,
        width=dataset_info.dx,
        classes=plan.classes,
        held_out=held_out,
    )
    unlabelled = (
        replace(
            labelled,
            tasks=plan.unlabelled.tasks,
            classes=None,
            held_out=np.empty(0, np.int64),
        )
        if plan.unlabelled
        else None
    )
    failures = [*plan.failures]
    labelled, scan = _scan(job, labelled, executor, record, failures, DataScan())
    moments = scan.moments
    if unlabelled:
        both = DataScan(moments=moments)
        unlabelled, both = _scan(job, unlabelled, executor, record, failures, both)
        moments = both.moments
    if plan.classes:
        count = np.bincount(np.concatenate(scan.y), minlength=dataset_info.L)
        method.check_classes(scan.count + count, dataset_info.names)
    method.check(replace(dataset_info, N=labelled.rows + len(held_out)), _world_size(job))
    spec = TrainingSpec(
        method=method,
        dataset_info=dataset_info,
        labelled=labelled,
        unlabelled=unlabelled,
        scale=scale(np.array(moments[0]), *moments[1:])
        if settings.normalise.startswith("zscore")
        else {},
        held_out=(np.concatenate(scan.X), np.concatenate(scan.y)),
        checkpoints=Checkpoints(
            _folder(job), _identity(job, method, dataset_info, plan), defaults=_defaults(method)
        ),
        # Results depend on this one, so it must not depend on the machine.
        shuffle_bytes=(machine.CACHE if job.cache_bytes is None else job.cache_bytes) // 2,
        cache_bytes=cache_of(job, executor) // 2,
        device=job.where.device,
    )
    return spec, failures


def _scan(
    job: TrainJob,
    source: RowSource,
    executor: Executor,
    record: RunRecord,
    failures: list[ShardFailure],
    scan: DataScan,
) -> tuple[RowSource, DataScan]:
    """Scans a store; returns it without bad shards, which are added to ``failures``, and ``scan``
    with the others added."""
    args = (source.columns, source.width, source.classes, source.held_out)
    with (
        executor.start_workers(ScanWorker, *args, stage="scan") as pool,
        record.observe(pool),
    ):
        results = pool.map(ScanWorker.scan, source.tasks, ordered=True)
        for part in completed(
            results,
            total=len(source.tasks),
            label=f"{job.method} scan",
            on_bad_shard=job.on_bad_shard,
            failures=failures,
        ):
            scan.add(part)
    bad = {failure.shard for failure in failures}
    tasks = [task for task in source.tasks if task.name not in bad]
    return replace(source, tasks=tasks), scan


def _folder(job: TrainJob) -> str:
    """The folder of the checkpoints; absolute, since workers run in other folders."""
    uri = join(job.output, FOLDER)
    return str(local_path(uri).absolute()) if is_local(uri) else uri


def _identity(
    job: TrainJob, method: GradientMethod, dataset_info: TrainingSetInfo, plan: TrainingPlan
) -> dict[str, Any]:
    """Values that must equal those of a checkpoint for training to resume from it."""
    digest = hashlib.sha256("\n".join(dataset_info.names).encode())
    tasks = [*plan.tasks, *(plan.unlabelled.tasks if plan.unlabelled else ())]
    for task in tasks:
        digest.update(f"\n{task.shard.uri}:{task.shard.size}:{task.shard.modified}".encode())
    identity = {
        "method": job.method,
        "data": digest.hexdigest()[:16],
        "columns": job.columns.model_dump(mode="json"),
        **method.settings.model_dump(mode="json"),
    }
    if dataset_info.A is not None:  # the class table counts by its content, not by its path
        embeddings = np.ascontiguousarray(dataset_info.A)
        identity["embeddings"] = hashlib.sha256(embeddings.tobytes()).hexdigest()[:16]
    return identity


def _defaults(method: GradientMethod) -> dict[str, Any]:
    """Values of the keys that the identity of an older checkpoint lacks: those of older models,
    else the defaults."""
    settings = {
        name: info.get_default(call_default_factory=True)
        for name, info in type(method.settings).model_fields.items()
        if not info.is_required()
    }
    legacy = method.model_class.legacy_settings
    return {"columns": Columns().model_dump(mode="json"), **settings, **legacy}


@dataclass(frozen=True, kw_only=True, eq=False)
class Embedder:
    """Embeds features X [n, dx] as U [n, D] by a trained network, in the follow-up's workers."""

    network: Network
    spec: TrainingSpec
    device: str = "cpu"

    def __call__(self, X: NDArray[np.float32]) -> NDArray[np.float32]:
        network = self.network.to(self.device)
        with torch.inference_mode():
            x = tensor_of(self.spec.normalised(X)).to(self.device)
            return network.embed(x).float().cpu().numpy()


def _finish(
    job: TrainJob,
    method: GradientMethod,
    network: Network,
    spec: TrainingSpec,
    executor: Executor,
    record: RunRecord,
) -> None:
    """Calls ``GradientMethod.finish`` with a sample of the training rows, if the method has one."""
    if not method.sample_rows:
        return
    source = spec.labelled
    if method.samples_unlabelled:
        assert spec.unlabelled is not None, "a method that samples these rows needs them"
        source = spec.unlabelled
    rows = sum(task.rows for task in source.tasks)
    rng = np.random.default_rng([method.settings.seed, 14])
    n = min(method.sample_rows, rows, _MAX_SAMPLE_BYTES // (4 * spec.dataset_info.dx))
    chosen = np.sort(rng.choice(rows, n, replace=False))
    X, y = draw(
        job, _numbered(source.tasks), source.width, source.classes, chosen, executor, record
    )
    with seeded(method.settings.seed, 13):
        network.eval()
        method.finish(network, spec.dataset_info, spec.normalised(X), y)


def _numbered(tasks: Sequence[TrainTask]) -> list[TrainTask]:
    """Tasks whose rows are numbered anew, without those of bad shards."""
    starts = [0, *accumulate(task.rows for task in tasks)]
    return [replace(task, row=start) for task, start in zip(tasks, starts, strict=False)]


def _follow_up(
    job: TrainJob,
    method: GradientMethod,
    network: Network,
    spec: TrainingSpec,
    plan: TrainingPlan,
    executor: Executor,
    record: RunRecord,
) -> tuple[NDArray[np.float32] | None, dict[str, Any]]:
    """Codebooks by reduction on embedded features and their record, if the method needs them."""
    follower: ReductionMethod | None = method.follow_up()
    if follower is None:
        return None, {}
    embed = Embedder(network=network.eval(), spec=spec)
    source = spec.labelled
    width = embed(np.zeros((1, plan.dataset_info.dx), np.float32)).shape[1]
    rows_of_tasks = [task.rows for task in source.tasks]
    groups, rows = grouped(_numbered(source.tasks), rows_of_tasks), sum(rows_of_tasks)
    args = (
        follower, source.columns, source.width, source.classes, cache_of(job, executor),
        job.where.device, replace(embed, device=job.where.device),
    )  # fmt: skip
    with (
        executor.start_workers(
            TrainWorker, *args, stage="train", cache=job.cache_bytes or 0
        ) as pool,
        record.observe(pool),
    ):
        state = iterate(
            follower,
            follower.begin(replace(plan.dataset_info, N=rows, dx=width)),
            lambda state: run_pass(
                pool,
                groups,
                state,
                f"{job.method} codebooks {state.phase} {state.iteration}",
            ),
            threads=job.where.threads * job.where.workers,
        )
    model = follower.model(state)
    if "P" in model.tensors:
        raise InputError("follow-up", expected="a method without a projection", found=follower.name)
    return model.C, {"codebooks": dict(model.record)}


def _log(name: str, epoch: Mapping[str, Any]) -> None:
    excluded = {"phase", "epoch", "epochs", "seconds", "rate"}
    terms = ", ".join(f"{key} {value:.4g}" for key, value in epoch.items() if key not in excluded)
    console.say(
        f"{name} {epoch['phase']} {epoch['epoch'] + 1}/{epoch['epochs']}: {terms} "
        f"({epoch['seconds']:.1f} s)",
        **epoch,
    )
