"""The `raypq doctor` command."""

from __future__ import annotations

import click

from raypq.cli.options import show, verb


@click.command()
@verb
def doctor() -> None:
    """Show what this installation can use: kernels, threads, torch, CUDA, CPUs, memory.

    CPUs and memory are shown with the limit that applies (cgroup, affinity, machine). The default
    number of workers, their memory and their cache of features follow from them. The exit code is 1
    without native kernels, which every build should have.

    \b
    Example:
      raypq doctor
    """
    from raypq import console, kernels, machine

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
    found = kernels.runtime_info()
    show(found | limits)
    if found["native_missing"]:
        console.fail(
            f"no native kernels, so that everything is several times slower: "
            f"{found['native_missing']}",
            kind="NoNativeKernels",
        )
        raise click.exceptions.Exit(1)
