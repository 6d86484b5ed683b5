"""Checks of a worker's memory against the job, and of this machine's CPUs where there is no Ray."""

from __future__ import annotations

from collections.abc import Iterator

from raypq import kernels, machine
from raypq.checks.finding import Finding, fail, ok, warn
from raypq.checks.inputs import Inputs
from raypq.config import Job, NeighborsJob, RetrievalJob, TrainJob, WorkerSettings

_BASE = machine.GIB // 2  # bytes of a worker's imports and batches, about
_TABLES = machine.GIB  # bytes of class tables that a worker holds at most (docs/scale.md)
_NEIGHBORS, _EVALUATED = 40, 16  # bytes that a worker holds of an image beside its code and id
_LESS = "fewer workers, or more memory_per_worker below where (--memory-per-worker)"


def check_native() -> Finding:
    """Whether this process has native kernels."""
    info = kernels.runtime_info()
    if missing := info["native_missing"]:
        return fail("kernels", str(missing), "install raypq where a C++ compiler is")
    return ok("kernels", f"native, {info['isa']}")


def check_machine(where: WorkerSettings) -> list[Finding]:
    """CPUs of this machine against workers and threads, for a job without Ray or on a local one."""
    here, asked = machine.usable(), where.workers * where.threads
    found = f"{where.workers} workers × {where.threads} threads on {here.cpus} CPUs"
    if asked <= here.cpus:
        return [ok("CPUs", found)]
    remedy = f"set workers × threads to {here.cpus} below where; they share the CPUs otherwise"
    return [warn("CPUs", f"{found} ({here.cpus_from})", remedy)]


def check_memory(job: Job, inputs: Inputs, available: int) -> Finding:
    """Memory of a worker against what the job holds in it.

    Args:
        available: bytes of a worker; 0 where they are not known.
    """
    parts = dict(_parts(job, inputs))
    needed = sum(parts.values())
    listed = ", ".join(f"{name} {size / machine.GIB:.2g}" for name, size in parts.items())
    found = f"a worker needs about {needed / machine.GIB:.2g} GiB ({listed})"
    if not available:
        return warn(
            "memory of a worker",
            f"{found}; what it gets is not known",
            "set memory_per_worker below where, which Ray then reserves",
        )
    found += f" of {available / machine.GIB:.2g} GiB"
    if needed <= available:
        return ok("memory of a worker", found)
    return fail("memory of a worker", found, _LESS)


def _parts(job: Job, inputs: Inputs) -> Iterator[tuple[str, int]]:
    """Bytes that a worker holds, by what they are."""
    yield "process", _BASE
    if models := inputs.models.values():
        yield "model", sum(t.nbytes for model in models for t in model.tensors.values())
    if isinstance(job, TrainJob) and job.cache_bytes:
        yield "cache", job.cache_bytes
    if inputs.tables and models and not isinstance(job, TrainJob):
        model, T = next(iter(models)), max(map(len, inputs.tables.values()))
        yield "class tables", min(_TABLES, T * (model.M * model.K + 8 * model.D))
    if isinstance(job, NeighborsJob | RetrievalJob) and job.codes in inputs.stores:
        codes = inputs.stores[job.codes]
        stored = codes.shards.totals.bytes
        twice = isinstance(job, NeighborsJob)  # the codes, and the index of them
        each = _NEIGHBORS if twice else _EVALUATED
        yield f"codes of {codes.rows:,} images", stored * (1 + twice) + each * codes.rows
