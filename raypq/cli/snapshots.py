"""The `raypq snapshots` commands."""

from __future__ import annotations

import json

import click

from raypq import console
from raypq.cli.options import PLACE, Number, show, told, verb


@click.group()
def snapshots() -> None:
    """Look at the versions of a store, go back to one, and clear what none of them needs.

    \b
    Example:
      raypq snapshots list codes
    """


@snapshots.command("list")
@click.argument("store", type=PLACE)
@verb
def snapshots_list(store: str) -> None:
    """One line for each version of STORE, oldest first.

    \b
    Example:
      raypq snapshots list codes
    """
    from raypq.stages.stores import versions

    for line in versions.listing(store):
        console.emit(json.dumps(line))


@snapshots.command("show")
@click.argument("store", type=PLACE)
@click.option("--version", type=click.IntRange(1), help="[default: latest]")
@verb
def snapshots_show(store: str, version: int | None) -> None:
    """Everything that a version of STORE says of itself.

    \b
    Example:
      raypq snapshots show codes --version 3
    """
    from raypq.stages.stores import versions

    show(versions.show(store, version))


@snapshots.command("verify")
@click.argument("store", type=PLACE)
@click.option("--version", type=click.IntRange(1), help="[default: latest]")
@click.option("--sha256", is_flag=True, help="Read every byte, not only the sizes.")
@verb
def snapshots_verify(store: str, version: int | None, sha256: bool) -> None:
    """Check that every file of a version of STORE is there as it was written.

    \b
    Example:
      raypq snapshots verify codes --sha256
    """
    from raypq.stages.stores import versions

    show(versions.verify(store, version, content=sha256))


@snapshots.command("diff")
@click.argument("store", type=PLACE)
@click.argument("old", type=click.IntRange(1))
@click.argument("new", type=click.IntRange(1), required=False)
@verb
def snapshots_diff(store: str, old: int, new: int | None) -> None:
    """Shards that versions OLD and NEW (default: the latest) of STORE do not share.

    \b
    Example:
      raypq snapshots diff codes 1
    """
    from raypq.stages.stores import versions

    show(versions.diff(store, old, new))


@snapshots.command("restore")
@click.argument("store", type=PLACE)
@click.argument("version", type=click.IntRange(1))
@verb
def snapshots_restore(store: str, version: int) -> None:
    """Make what VERSION of STORE holds the latest version again; no file is copied.

    \b
    Example:
      raypq snapshots restore codes 1
    """
    from raypq.stages.stores import versions

    show(told(versions.restore(store, version), store))


@snapshots.command("gc")
@click.argument("store", type=PLACE)
@click.option("--keep", type=click.IntRange(1), help="Latest versions to retain. [default: all]")
@click.option(
    "--older-than-days",
    type=Number(0),
    default=7.0,
    show_default=True,
    help="Younger files may belong to a run that is not finished.",
)
@click.option("--delete", "remove", is_flag=True, help="Remove them; otherwise only tell.")
@verb
def snapshots_gc(store: str, keep: int | None, older_than_days: float, remove: bool) -> None:
    """Find files in STORE that no retained version names; remove them with --delete.

    \b
    Example:
      raypq snapshots gc codes --keep 30 --delete
    """
    from raypq.stages.stores import versions

    found = versions.collect(store, keep=keep, older_than_days=older_than_days, remove=remove)
    show(
        {
            "removed" if remove else "would remove": {
                "versions": list(found.versions),
                "files": len(found.files),
                "bytes": found.bytes,
            },
            **({"beside": list(found.beside)} if found.beside else {}),
        }
    )
