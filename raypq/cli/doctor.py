"""The `raypq doctor` command."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from raypq import console
from raypq.cli.job_command import JobCommand
from raypq.cli.options import PLACE, show, verb

if TYPE_CHECKING:
    from raypq.checks import Finding
    from raypq.config import Job


@click.command()
@click.option("--config", type=PLACE, metavar="FILE", help="Config of a job to check, too.")
@click.option(
    "--job",
    "name",
    metavar="COMMAND",
    help="Command that the config is for, such as reindex; default: the one that its keys fit.",
)
@verb
def doctor(config: str | None, name: str | None) -> None:
    """Show what this installation can use, or check what a job needs before it runs.

    Without --config: kernels, threads, torch, CUDA, CPUs and memory. CPUs and memory are shown with
    the limit that applies (cgroup, affinity, machine). The default number of workers, their memory
    and their cache of features follow from them. The exit code is 1 without native kernels, which
    every build should have.

    With --config: every input is listed and read, models and networks are loaded (weights that are
    not there yet are downloaded), a small file is created, read, listed and deleted where the job
    writes, and the cluster's nodes are asked for their versions, CPUs, GPUs and memory, and whether
    they reach the same places. A local Ray is started for it. Each line is ok, warn or fail, with
    what to do; the exit code is 1 if one is fail.

    \b
    Example:
      raypq doctor
      raypq doctor --config nightly.yaml
    """
    if config is not None:
        _check_job(config, name)
    elif name is not None:
        raise click.UsageError("--job: is for --config, of which none is named")
    else:
        _check_machine()


def _check_machine() -> None:
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
    found = kernels.runtime_info()
    show(found | limits)
    if found["native_missing"]:
        console.fail(
            f"no native kernels, so that everything is several times slower: "
            f"{found['native_missing']}",
            kind="NoNativeKernels",
        )
        raise click.exceptions.Exit(1)


def _check_job(config: str, name: str | None) -> None:
    from raypq import api

    name, job = _job_of(config, name)
    findings = api.check(job)
    counts = Counter(finding.level for finding in findings)
    if console.structured():
        every = [{**asdict(finding)} for finding in findings]
        levels = {level: counts[level] for level in ("ok", "warn", "fail")}
        show({"config": config, "job": name, **levels, "checks": every})
    else:
        console.emit(f"{config}: raypq {name}")
        for finding in findings:
            console.emit(_line(finding))
    if counts["fail"]:
        console.fail(
            f"{counts['fail']} of {len(findings)} checks failed: the job would not run",
            kind="CheckFailed",
        )
        raise click.exceptions.Exit(1)


def _line(finding: Finding) -> str:
    line = f"{finding.level:<5}{finding.subject}: {finding.found}"
    return f"{line}\n     -> {finding.remedy}" if finding.remedy else line


def _job_of(config: str, name: str | None) -> tuple[str, Job]:
    """The command of a config and its job.

    Raises:
        ConfigError: the config is wrong, or no command or several take it.
    """
    from raypq.errors import ConfigError

    commands = dict(_commands(click.get_current_context().find_root().command))
    if name is not None:
        if name not in commands:
            raise ConfigError(f"--job: expected one of {', '.join(commands)}, found {name!r}")
        return name, _read(commands[name], config)
    if len(fitting := _fitting(commands, config)) > 1:
        raise ConfigError(
            f"{config}: several commands take these keys; name one by --job: {', '.join(fitting)}"
        )
    if not fitting:
        name = _nearest(commands, config)
        _read(commands[name], config)  # its error says what is wrong
    return fitting.popitem()


def _fitting(commands: dict[str, JobCommand], config: str) -> dict[str, Job]:
    """The commands that take a config."""
    from raypq.errors import ConfigError

    jobs = {}
    for name, command in commands.items():
        try:
            jobs[name] = _read(command, config)
        except ConfigError:
            continue
    return jobs


def _read(command: JobCommand, config: str) -> Job:
    return command.settings.parse(command.read_config(config, {}), origin=config)


def _nearest(commands: dict[str, JobCommand], config: str) -> str:
    """The command that has the most keys of a config, for its error."""
    from raypq.config import read_mapping

    keys = {*read_mapping(config)}

    def share(name: str) -> tuple[int, int]:
        fields = {*commands[name].settings.model_fields}
        return len(keys & fields), -len(fields - keys)

    return max(commands, key=share)


def _commands(command: Any, words: tuple[str, ...] = ()) -> list[tuple[str, JobCommand]]:
    """Every command of settings below a group, by its words."""
    if isinstance(command, JobCommand):
        return [(" ".join(words), command)]
    below = getattr(command, "commands", {}).items()
    return [found for name, one in below for found in _commands(one, (*words, name))]
