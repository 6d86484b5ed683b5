"""Quarantined shards: those that a version leaves out, with the reason and the time.

A version names the shards that it leaves out, with reasons. Its summary has the time since when
(``KEY``, by shard), which is copied from version to version until one holds the shard again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from raypq import console
from raypq.data.store.shard_writer import Source
from raypq.data.store.snapshot import Quarantined, Snapshot
from raypq.errors import QuarantineError

KEY = "quarantined_since"  # of a version's summary
_MAX_NAMES = 20


def is_unchanged(item: Quarantined, source: Source, work: str | None) -> bool:
    """Whether a quarantined shard has the same source, and the same work, as when it failed."""
    return bool(item.source and item.work == work and item.source.same_file(source))


def unchanged(latest: Snapshot, sources: Mapping[str, tuple[Source, str]]) -> set[str]:
    """Stems of quarantined shards with the same source and work as when they failed.

    Args:
        sources: source and work of each shard now, by stem.
    """
    stems = set()
    for item in latest.quarantined:
        source, work = sources.get(item.shard, (None, None))
        if source and is_unchanged(item, source, work):
            stems.add(item.shard)
    return stems


def since(version: Snapshot) -> dict[str, str]:
    """The time (UTC) since when each shard is left out; by default that of the version."""
    entry = version.summary.get(KEY)
    known = entry if isinstance(entry, dict) else {}
    return {item.shard: str(known.get(item.shard, version.created)) for item in version.quarantined}


def summary_entry(latest: Snapshot | None, quarantined: Iterable[Quarantined]) -> dict[str, Any]:
    """The entry of the next version's summary: since when each shard is left out."""
    before = since(latest) if latest else {}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    entry = {item.shard: before.get(item.shard, now) for item in quarantined}
    return {KEY: entry} if entry else {}


def summary(version: Snapshot) -> dict[str, Any]:
    """The number of shards that a version leaves out, the time of the first, and their names."""
    times = since(version)
    items = sorted(version.quarantined, key=lambda item: (times[item.shard], item.shard))
    return {
        "shards": len(items),
        "since": min(times.values(), default=None),
        "names": [item.uri for item in items[:_MAX_NAMES]],
    }


def warn(store: str, version: Snapshot, *, except_for: Collection[str] = ()) -> None:
    """Warns of the shards that a version leaves out.

    Args:
        except_for: stems of shards of which a warning was given already.
    """
    times = since(version)
    items = [item for item in version.quarantined if item.shard not in except_for]
    for item in items[:_MAX_NAMES]:
        console.warn(f"left out since {times[item.shard]}: {reason_of(item)}", shard=item.uri)
    if items:
        console.warn(
            f"{store} version {version.version}: {len(items)} shard(s) are left out, the first "
            f"since {min(times[item.shard] for item in items)}; each is tried again when it "
            "changes, all of them with --on-bad-shard fail (on_bad_shard: fail)"
        )


def refuse(versions: Sequence[tuple[str, Snapshot]]) -> None:
    """Raises where versions leave out shards; called after they are committed.

    Raises:
        QuarantineError: naming the shards.
    """
    lines = [
        f"{store}: {reason_of(item)} (since {since(version)[item.shard]})"
        for store, version in versions
        for item in version.quarantined
    ]
    if lines:
        raise QuarantineError(lines)


def reason_of(item: Quarantined) -> str:
    """Why a shard is left out, with its URI."""
    return item.reason if item.uri in item.reason else f"{item.uri}: {item.reason}"
