"""Plain folders of Parquet files as outputs: refused where other files would be taken for theirs.

A store has versions, a plain folder does not: whoever reads it reads every file in it. What an
earlier run left there (of other inputs, or under the names of an earlier raypq) would double rows.
"""

from __future__ import annotations

from collections.abc import Iterable

from raypq.data.storage import canonical, filesystem, is_local, join, list_shards, uri_of
from raypq.errors import ConfigError, EmptySourceError, MissingSourceError


def parquet_files(output: str) -> list[str]:
    """URIs of the Parquet files below a folder, which need not be there."""
    try:
        return [shard.uri for shard in list_shards([output])]
    except (EmptySourceError, MissingSourceError):
        return []


def refuse_others(output: str, names: Iterable[str]) -> None:
    """Makes sure that the Parquet files below ``output`` are at most those of ``names``.

    Args:
        names: paths below the folder that the run writes, or writes over.

    Raises:
        ConfigError: naming a file that would stay there.
    """
    place = canonical(output) if is_local(output) else uri_of(*filesystem(output), output)
    written = {join(place, name) for name in names}
    others = [uri for uri in parquet_files(output) if uri not in written]
    if others:
        raise ConfigError(
            f"output: {output} holds {len(others)} Parquet file(s) that this run does not write, "
            f"such as {others[0]}; whoever reads the folder would read them too. Name another "
            "folder, or remove them (those of the same inputs have other names where an earlier "
            "raypq wrote them)"
        )
