"""Plain folders of Parquet files as outputs, without files that the run did not write.

Unlike a store, a plain folder has no versions: readers read every file in it. Files of an earlier
run (of other inputs, or with the names of an earlier raypq) would add or repeat rows, and the old
file of a shard that is left out now would pass for a current one.
"""

from __future__ import annotations

from collections.abc import Iterable

from raypq import console
from raypq.data.storage import (
    Shard,
    canonical,
    delete,
    filesystem,
    is_local,
    join,
    list_files,
    list_shards,
    uri_of,
)
from raypq.errors import ConfigError, EmptySourceError, MissingSourceError, ShardFailure


def parquet_files(output: str) -> list[str]:
    """URIs of the Parquet files below a folder, which need not exist."""
    try:
        return [shard.uri for shard in list_shards([output])]
    except (EmptySourceError, MissingSourceError):
        return []


def refuse_others(output: str, names: Iterable[str]) -> None:
    """Checks that a folder holds no Parquet files other than those of ``names``.

    Args:
        names: paths below the folder that the run writes or replaces.

    Raises:
        ConfigError: naming a file that would stay there.
    """
    folder = canonical(output) if is_local(output) else uri_of(*filesystem(output), output)
    written = {join(folder, name) for name in names}
    others = [uri for uri in parquet_files(output) if uri not in written]
    if others:
        raise ConfigError(
            f"output: {output} holds {len(others)} Parquet file(s) that this run does not write, "
            f"such as {others[0]}; whoever reads the folder would read them too. Name another "
            "folder, or remove them (those of the same inputs have other names where an earlier "
            "raypq wrote them)"
        )


def remove_left_out(output: str, shards: Iterable[Shard], failures: Iterable[ShardFailure]) -> None:
    """Removes the files ``<stem>.parquet`` of an earlier run whose shards failed in this one.

    Called where the run goes on without these shards (``on_bad_shard: quarantine``).
    """
    failed = {failure.shard for failure in failures}
    names = {f"{shard.stem}.parquet" for shard in shards if shard.uri in failed}
    for name in sorted(names & list_files(output).keys()) if names else ():
        delete(join(output, name))
        console.warn(
            f"{join(output, name)}: removed, because an earlier run wrote it and this run leaves "
            "its shard out"
        )
