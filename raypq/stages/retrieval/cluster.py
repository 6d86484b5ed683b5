"""Clusters of stored images: k-means of their decoded codes.

Centres are found by passes over all codes: workers add up the rows of each cluster, the driver
moves the centres. Then each code file gets a file with the cluster of each image. A later run
assigns new code files to the same centres and keeps the files of unchanged ones, except with
``refit``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from raypq import console, kernels, machine
from raypq.config import ClusterJob
from raypq.data.storage import Shard, join
from raypq.data.store import sidecars, snapshot
from raypq.data.store.shard_writer import Receipt
from raypq.data.store.snapshot import Snapshot
from raypq.errors import ConfigError, InputError
from raypq.execution.executor import Executor, TaskResult, WorkerPool, completed
from raypq.execution.run_record import RunRecord
from raypq.methods.base import Stats
from raypq.methods.support.code_sample import CodeSample
from raypq.methods.support.kmeans import CodeRows, Floats, converged, sample_size
from raypq.stages.retrieval import cluster_table
from raypq.stages.retrieval.cluster_table import About, Centres, FitState
from raypq.stages.retrieval.cluster_worker import ClusterPlan, ClusterWorker, CodeFiles
from raypq.stages.retrieval.code_blocks import groups
from raypq.stages.retrieval.one_model import images_of_one_model
from raypq.stages.stores.code_store import id_type_of, open_store
from raypq.stages.stores.shard_run import StoreRun
from raypq.stages.stores.shard_task import ShardTask, stored_shards
from raypq.stages.stores.work_id import cluster_fit, cluster_settings, cluster_work

_MAX_VERSIONS = 16  # of the output that are looked through for centres
_TASKS = 2  # of a pass, for each worker; every one sends sums of all clusters

Pool = WorkerPool[ClusterWorker]


def cluster(job: ClusterJob, executor: Executor) -> Snapshot:
    """Finds the clusters; returns the new version of the store, with a file for each code file.

    Raises:
        ConfigError: the metric of the model is dot, and the job names none.
        InputError: fewer distinct codes than clusters.
        ModelError: several models, or one whose codes are of classes.
        JobError: some code shards could not be read.
    """
    record = RunRecord(job, executor)
    version = open_store(job.codes, job.version)
    plan = _plan(job, version, executor)
    model = plan.rows.model.fingerprint
    settings = cluster_settings(model, job, metric=plan.rows.metric)
    fit = cluster_fit(settings, [receipt.sha256 for receipt in version.shards])
    centres, of = _known_centres(job, settings, fit)
    fit = fit if centres is None else centres.about.fit
    work = cluster_work(fit)
    tasks = [ShardTask(shard=shard, model=model, work=work) for shard in plan.shards]
    run = StoreRun.plan(kind="clusters", store=job.output, tasks=tasks)
    table_is_there = run.latest is not None and run.latest.version == of
    if table_is_there and (finished := run.unchanged_version()):
        return finished

    def process(missing: Sequence[ShardTask]) -> Iterator[TaskResult[Receipt]]:
        nonlocal centres
        if centres is None:
            C, errors = _find_centres(job, plan, version, pool, fit)
            about = About(
                settings=settings,
                fit=fit,
                codes_version=version.version,
                rows=version.rows,
                iterations=len(errors),
                mean_distance=errors[-1],
            )
            centres = Centres(C=C, about=about)
        return pool.map(ClusterWorker.write, missing, centres.C)

    def on_result(receipt: Receipt) -> Receipt:
        record.finished(receipt.rows)
        return receipt

    def summarise(receipts: Sequence[Receipt]) -> dict[str, Any]:
        assert centres is not None, "found before the first file"
        counted = _counted(job, plan, centres, pool, receipts)
        record.end_of_work("cluster")
        read = {"codes": job.codes, "codes_version": version.version, "rows": version.rows}
        return {**read, **counted, "run": record.summary()}

    with executor.start_workers(ClusterWorker, plan, stage="cluster") as pool, record.observe(pool):
        made = run.execute(process, on_bad_shard="fail", on_result=on_result, summarise=summarise)
    cluster_table.remove_state(job.output, fit)
    return made


def _plan(job: ClusterJob, version: Snapshot, executor: Executor) -> ClusterPlan:
    model, metric = images_of_one_model(job, version)
    if metric == "dot":
        raise ConfigError(
            "metric: clusters are by l2 or cosine, and the model's metric is dot; name one of them "
            "(--metric, metric)"
        )
    return ClusterPlan(
        store=job.output,
        shards=stored_shards(job.codes, version),
        rows=CodeRows(model=model, metric=metric, n=version.rows),
        id_type=id_type_of(job.codes, version),
        k=job.k,
        device=job.where.device,
        cache_bytes=machine.cache_bytes(executor.worker_memory),
    )


def _known_centres(job: ClusterJob, settings: str, fit: str) -> tuple[Centres | None, int | None]:
    """The centres of the last version with these settings, where they are to be used again, and its
    number."""
    for number in reversed(snapshot.versions(job.output)[-_MAX_VERSIONS:]):
        centres = Centres.of_version(job.output, snapshot.read(job.output, number), settings)
        if centres is None:  # of other settings, or lost
            continue
        if centres.about.fit == fit:
            return centres, number
        if job.refit:
            break
        console.say(
            f"{job.output}: the centres of version {number} are used again (--refit, refit: true, "
            "finds new ones)"
        )
        return centres, number
    return None, None


def _find_centres(
    job: ClusterJob, plan: ClusterPlan, version: Snapshot, pool: Pool, fit: str
) -> tuple[Floats, list[float]]:
    """Centres [k, D] by passes over all codes, and the mean error before each pass moved them."""
    tasks = _tasks(job, version, plan.shards)
    state = FitState.read(job.output, fit, shape=(job.k, plan.rows.model.D))
    if state is None:
        sample = _sample(job, plan, pool, tasks)
        with kernels.native_threads(machine.usable().cpus):  # the workers wait
            seeds = plan.rows.seeds(sample, job.k, np.random.default_rng([job.seed, 0]))
        state = FitState(C=seeds, errors=[])
    while len(state.errors) < job.iterations and not converged(state.errors):
        iteration = len(state.errors) + 1
        label = f"iteration {iteration}"
        sums = Stats()
        for part in completed(
            pool.map(ClusterWorker.sums, tasks, state.C, ordered=True),
            total=len(tasks),
            label=label,
            unit="groups of shards",
        ):
            sums.merge(part)
        rng = np.random.default_rng([job.seed, iteration])
        C, error = plan.rows.moved(state.C, sums, rng)
        state = FitState(C=C, errors=[*state.errors, error])
        state.write(job.output, fit)
        console.say(f"{label}: mean squared distance {error:.6g}", iteration=iteration)
    return state.C, state.errors


def _tasks(job: ClusterJob, version: Snapshot, shards: Sequence[Shard]) -> list[CodeFiles]:
    """Tasks of about equal numbers of rows."""
    most = -(-version.rows // (_TASKS * job.where.workers))
    tasks, first = [], 0
    for group in groups(shards, [receipt.rows for receipt in version.shards], max_rows=most):
        last = first + len(group)
        tasks.append(CodeFiles(name=group[0].uri, first=first, last=last))
        first = last
    return tasks


def _sample(
    job: ClusterJob, plan: ClusterPlan, pool: Pool, tasks: Sequence[CodeFiles]
) -> CodeSample:
    """The sample that seeds are drawn from.

    Raises:
        InputError: fewer distinct codes than clusters.
    """
    size = sample_size(job.k)
    sample = CodeSample.empty(size, plan.rows.model.M, job.seed)
    results = pool.map(ClusterWorker.sample, tasks, size, job.seed)
    for part in completed(results, total=len(tasks), label="sample", unit="groups of shards"):
        sample.merge(part)
    if len(sample.B) < job.k:
        raise InputError(
            job.codes,
            expected=f"at least as many distinct codes as clusters, {job.k:,} (--k, k)",
            found=f"{len(sample.B):,} distinct codes in {plan.rows.n:,} rows",
        )
    return sample


def _counted(
    job: ClusterJob,
    plan: ClusterPlan,
    centres: Centres,
    pool: Pool,
    receipts: Sequence[Receipt],
) -> dict[str, Any]:
    """Counts the images of each cluster and writes the table of the clusters; entries of the
    version's summary."""
    tasks = [
        ShardTask(
            shard=Shard(
                index=index,
                uri=join(job.output, item.path),
                stem=item.shard,
                size=item.bytes,
                modified=item.sha256,
            )
        )
        for index, item in enumerate(sorted(receipts, key=lambda item: item.shard))
    ]
    counts = Stats()
    results = pool.map(ClusterWorker.count, tasks, ordered=True)
    for part in completed(results, total=len(tasks), label="count"):
        counts.merge(part)
    size, score = counts.sums["size"], counts.sums["score"]
    mean = np.divide(score, size, out=np.full(len(size), np.nan), where=size > 0)
    table = cluster_table.write(
        job.output,
        centres,
        size=size.astype(np.int64),
        mean_score=mean.astype(np.float32),
        metadata=plan.metadata,
    )
    empty = int((size == 0).sum())
    if empty:
        console.warn(f"{empty:,} of {job.k:,} clusters are empty", empty=empty)
    return {
        "metric": plan.rows.metric,
        "k": job.k,
        "empty": empty,
        "largest": int(size.max()),
        "mean_score": float(score.sum() / size.sum()),
        "centres": centres.about.model_dump(mode="json"),
        **sidecars.as_summary(table),
    }
