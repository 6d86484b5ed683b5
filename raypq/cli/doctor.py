"""The `raypq doctor` command."""

from __future__ import annotations

import click

from raypq.cli.options import show, verb


@click.command()
@verb
def doctor() -> None:
    """Show what this installation can use: kernels, threads, torch, CUDA, CPUs, memory.

    CPUs and memory are shown with the limit that applies (cgroup, affinity, machine). The default
    number of workers, their memory and their cache of features follow from them.

    \b
    Example:
      raypq doctor
    """
    from raypq import kernels, machine

    here = machine.usable()
    workers = here.workers()
    memory = here.worker_memory(workers)
    limits = {
        "cpus": here.cpus,
        "cpus_from": here.cpus_from,
        "memory_bytes": here.memory,
        "memory_from": here.memory_from,
        "workers": workers,
        "worker_memory_bytes": memory,
        "cache_bytes": machine.cache_bytes(memory),
    }
    show(kernels.runtime_info() | limits)
