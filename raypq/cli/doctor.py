"""The `raypq doctor` command."""

from __future__ import annotations

import click

from raypq.cli.options import show, verb


@click.command()
@verb
def doctor() -> None:
    """Say what this installation can do and use: kernels, threads, torch, CUDA, CPUs, memory.

    CPUs and memory are what this process may use, and what limits them; workers, their memory and
    what they keep of features in training are the defaults that follow.

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
