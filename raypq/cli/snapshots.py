"""The `raypq snapshots` commands."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from raypq import console
from raypq.cli.job_command import job_command
from raypq.cli.options import show

if TYPE_CHECKING:
    from raypq.config import (
        CollectSettings,
        DiffSettings,
        ListSettings,
        RestoreSettings,
        ShowSettings,
        VerifySettings,
    )


@click.group()
def snapshots() -> None:
    """List, compare, verify and restore the versions of a store; remove unused files.

    \b
    Example:
      raypq snapshots list codes
    """


@job_command("raypq.config:ListSettings", "list", group=snapshots)
def snapshots_list(settings: ListSettings) -> None:
    """List the versions of STORE, oldest first, one JSON object a line.

    \b
    Example:
      raypq snapshots list codes
    """
    from raypq.stages.stores import versions

    for line in versions.listing(settings.store):
        console.emit(json.dumps(line))


@job_command("raypq.config:ShowSettings", "show", group=snapshots)
def snapshots_show(settings: ShowSettings) -> None:
    """Show the snapshot of a version of STORE.

    \b
    Example:
      raypq snapshots show codes --version 3
    """
    from raypq.stages.stores import versions

    show(versions.show(settings.store, settings.version))


@job_command("raypq.config:VerifySettings", "verify", group=snapshots)
def snapshots_verify(settings: VerifySettings) -> None:
    """Check that every file of a version of STORE is there as it was written.

    \b
    Example:
      raypq snapshots verify codes --sha256
    """
    from raypq.stages.stores import versions

    show(versions.verify(settings.store, settings.version, sha256=settings.sha256))


@job_command("raypq.config:DiffSettings", "diff", group=snapshots)
def snapshots_diff(settings: DiffSettings) -> None:
    """List the shards in which versions OLD and NEW (default: the latest) of STORE differ.

    \b
    Example:
      raypq snapshots diff codes 1
    """
    from raypq.stages.stores import versions

    show(versions.diff(settings.store, settings.old, settings.new))


@job_command("raypq.config:RestoreSettings", "restore", group=snapshots)
def snapshots_restore(settings: RestoreSettings) -> None:
    """Make the content of VERSION of STORE the latest version again; no file is copied.

    \b
    Example:
      raypq snapshots restore codes 1
    """
    from raypq.monitoring.results import version_summary
    from raypq.stages.stores import versions

    restored = versions.restore(settings.store, settings.version)
    show(version_summary(restored, settings.store))


@job_command("raypq.config:CollectSettings", "gc", group=snapshots)
def snapshots_gc(settings: CollectSettings) -> None:
    """Find files in STORE that no retained version names; remove them with --delete.

    \b
    Example:
      raypq snapshots gc codes --keep 30 --delete
    """
    from raypq.stages.stores import garbage

    unused = garbage.collect(
        settings.store,
        keep=settings.keep,
        older_than_days=settings.older_than_days,
        remove=settings.delete,
    )
    show(
        {
            "removed" if settings.delete else "would remove": {
                "versions": list(unused.versions),
                "files": len(unused.files),
                "bytes": unused.bytes,
            },
            **({"beside": list(unused.live_runs)} if unused.live_runs else {}),
        }
    )
