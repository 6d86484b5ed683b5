"""The manifests of a version: a large one, and small ones of later changes.

They form a log-structured merge tree. A version that changes c shards adds a manifest of c rows to
those of the version before. The last manifests are written anew as one where together they reach a
quarter of the one before them, so there are few, and a row is written again few times. Versions
share manifests, and a version that restores an earlier one names the manifests of that one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raypq.data.store import manifest
from raypq.data.store.manifest import COLUMNS, Manifest
from raypq.data.store.receipts import Receipts

_SMALLER = 4  # times that a manifest has the rows of all that follow it
_SMALL = 256  # rows of a manifest that is merged in any case
# Columns that are compared at once; opening a manifest costs as much as reading a column.
_TOGETHER = (
    ("path", "bytes", "rows", "sha256", "model", "work"),
    ("source_uri", "source_size", "source_modified", "source_sha256", "ids", "stats"),
)
_NONE = pa.nulls(0, COLUMNS["shard"])  # pa.array would import pandas


def write(store: str, receipts: Receipts, before: Sequence[Manifest]) -> tuple[Manifest, ...]:
    """The manifests of a new version of these receipts, which are there when this returns.

    Args:
        before: those of an earlier version, the oldest first, of which as many as possible stay.

    Raises:
        InputError: a manifest of ``before`` cannot be read.
    """
    if receipts.manifests == tuple(before) and before:
        return receipts.manifests
    kept = list(before)
    changed, removed = _difference(receipts, _receipts_of(store, kept))
    if not len(changed) + len(removed):
        return tuple(kept)
    count = kept_manifests([item.entries for item in kept], len(changed) + len(removed))
    if count < len(kept):
        kept = kept[:count]
        changed, removed = _difference(receipts, _receipts_of(store, kept))
    if len(changed) + len(removed):
        kept.append(manifest.write(store, _rows(receipts, changed), removed))
    return tuple(kept)


def kept_manifests(entries: Sequence[int], new: int) -> int:
    """How many of the first manifests stay where a change of ``new`` rows is added.

    Args:
        entries: rows of each manifest, the oldest first.
    """
    count = len(entries)
    while count and entries[count - 1] < _SMALLER * max(new, _SMALL):
        new += entries[count - 1]
        count -= 1
    return count


def _receipts_of(store: str, manifests: Sequence[Manifest]) -> Receipts | None:
    """What some of the first manifests of a version hold, which is no version of its own."""
    if not manifests:
        return None
    return Receipts.joined(store, manifests)


def _rows(receipts: Receipts, rows: NDArray[np.int64]) -> pa.Table:
    return pa.table({name: column.take(pa.array(rows)) for name, column in receipts.read().items()})


def _difference(receipts: Receipts, before: Receipts | None) -> tuple[NDArray[np.int64], pa.Array]:
    """The rows of receipts that others lack or have otherwise, and the shards that only they have.

    A few columns are compared at a time, so that not all of them are in memory.
    """
    if before is None:
        return np.arange(len(receipts)), _NONE
    stems, old_stems = receipts.column("shard"), before.column("shard")
    rows = before.find(stems)
    differs = rows < 0
    common = np.flatnonzero(~differs)
    here, there = pa.array(common), pa.array(rows[common])
    for names in _TOGETHER:
        new, old = receipts.read(names), before.read(names)
        for name in names:
            differs[common] |= _unequal(new[name].take(here), old[name].take(there))
    is_gone = pc.invert(pc.is_in(old_stems, value_set=stems))
    return np.flatnonzero(differs), old_stems.filter(is_gone)


def _unequal(one: pa.Array, other: pa.Array) -> NDArray[np.bool_]:
    """Where two columns differ; nulls are equal to each other alone."""
    unequal: NDArray[np.bool_] = np.asarray(pc.xor(pc.is_null(one), pc.is_null(other)))
    if pa.types.is_struct(one.type):
        for parts in zip(one.flatten(), other.flatten(), strict=True):
            unequal = unequal | _unequal(*parts)
        return unequal
    return unequal | np.asarray(pc.fill_null(pc.not_equal(one, other), False))


@dataclass(frozen=True, kw_only=True)
class ChangedShards:
    """The shards in which two versions differ, by name."""

    added: list[str]
    removed: list[str]
    changed: list[str]


def changed_shards(store: str, old: Receipts, new: Receipts) -> ChangedShards:
    """The shards that have other files in two versions, or a file in one of them only.

    Of manifests that both name, only rows of shards that others name, too, are read.
    """
    count = 0
    while old.manifests[count : count + 1] == new.manifests[count : count + 1] != ():
        count += 1
    if count:
        own = [*old.manifests[count:], *new.manifests[count:]]
        names = [manifest.read(store, item, ["shard"]).column("shard") for item in own]
        wanted = pa.chunked_array([chunk for name in names for chunk in name.chunks], _NONE.type)
        before, after = (_paths_of(store, item, wanted.combine_chunks()) for item in (old, new))
    else:
        before, after = (
            dict(
                zip(*(column.to_pylist() for column in item.columns("shard", "path")), strict=True)
            )
            for item in (old, new)
        )
    return ChangedShards(
        added=sorted(after.keys() - before.keys()),
        removed=sorted(before.keys() - after.keys()),
        changed=sorted(
            shard for shard in after.keys() & before.keys() if after[shard] != before[shard]
        ),
    )


def _paths_of(store: str, receipts: Receipts, shards: pa.Array) -> dict[str, str]:
    """The path of the file of each of these shards; those that are not there are absent."""
    found: dict[str, str] = {}
    for item in receipts.manifests:
        rows = manifest.find(store, item, shards, ["path"])
        found |= dict(
            zip(rows.column("shard").to_pylist(), rows.column("path").to_pylist(), strict=True)
        )
    return {shard: path for shard, path in found.items() if path is not None}


def paths(store: str, versions: Iterable[Receipts]) -> set[str]:
    """The paths of the files of several versions, each manifest read once.

    A row of a manifest counts for a version unless a later manifest of it has the same shard.
    """
    followers: dict[Manifest, set[tuple[Manifest, ...]]] = {}
    found: set[str] = set()
    for receipts in versions:
        if not receipts.manifests:
            found.update(receipts.column("path").to_pylist())
        for number, item in enumerate(receipts.manifests):
            followers.setdefault(item, set()).add(receipts.manifests[number + 1 :])
    for item, later in followers.items():
        table = manifest.read(store, item, ["shard", "path"])
        table = table.filter(pc.invert(table.column("removed")))
        if () not in later:
            table = table.filter(pa.array(~_is_hidden(store, table.column("shard"), later)))
        found.update(table.column("path").to_pylist())
    return found


def _is_hidden(
    store: str, shards: pa.ChunkedArray, later: Iterable[Sequence[Manifest]]
) -> NDArray[np.bool_]:
    """Which shards have rows in later manifests, of every version."""
    is_in: dict[str, NDArray[np.bool_]] = {}
    hidden = np.ones(len(shards), np.bool_)
    for manifests in later:
        for item in manifests:
            if item.path not in is_in:
                others = manifest.read(store, item, ["shard"]).column("shard").combine_chunks()
                is_in[item.path] = np.asarray(pc.is_in(shards, value_set=others))
        hidden &= np.logical_or.reduce([is_in[item.path] for item in manifests])
    return hidden
