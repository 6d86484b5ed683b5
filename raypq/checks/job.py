"""All checks of a job, in the order in which a person would repair them."""

from __future__ import annotations

from raypq import machine
from raypq.checks.finding import Finding, errors, ok
from raypq.checks.inputs import Inputs, check_inputs
from raypq.checks.nodes import check_nodes
from raypq.checks.outputs import check_outputs, folder_of
from raypq.checks.resources import check_machine, check_memory, check_native
from raypq.config import Job, WorkerSettings
from raypq.config.places import Place, Reads, Writes, places
from raypq.data.store import overlap


def check_job(job: Job) -> list[Finding]:
    """Checks what a job needs; reads and writes no data but probes, which are removed."""
    every = list({(place.field, place.uri): place for place in places(job)}.values())
    read = [place for place in every if isinstance(place.use, Reads)]
    written = [place for place in every if isinstance(place.use, Writes)]
    inputs = Inputs()
    findings = [check_native(), *_overlaps(job)]
    findings += check_inputs(job, read, inputs)
    findings += check_outputs(job, written, inputs)
    where = getattr(job, "where", None)
    if isinstance(where, WorkerSettings):
        findings += _check_workers(job, where, inputs, written)
    return findings


def _overlaps(job: Job) -> list[Finding]:
    findings: list[Finding] = []
    with errors("places", "name another place", findings):
        overlap.refuse(job)
        findings.append(ok("places", "no output lies among the inputs"))
    return findings


def _check_workers(
    job: Job, where: WorkerSettings, inputs: Inputs, written: list[Place]
) -> list[Finding]:
    findings: list[Finding] = []
    memory = machine.usable().worker_memory(1)  # without Ray, threads of one process
    if where.cluster in ("none", "local"):
        findings += check_machine(where)
    if where.cluster != "none":
        folders = list(dict.fromkeys(map(folder_of, written)))
        found, memory = check_nodes(where, inputs, folders)
        findings += found
    if where.memory_per_worker is not None:
        processes = where.workers if where.cluster == "none" else 1  # all share that of one
        memory = int(where.memory_per_worker * machine.GIB) * processes
    return [*findings, check_memory(job, inputs, memory)]
