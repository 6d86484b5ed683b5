"""Quarantined shards: which a version lacks, why, and since when.

A version says which shards it lacks and why. Its summary says since when each of them is left out
(``KEY``, by shard), which goes from version to version until the shard is in one again.
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
_NAMED = 20  # shards that are named one by one


def is_unchanged(item: Quarantined, source: Source, work: str | None) -> bool:
    """Whether a shard that was left out is as it was when it was tried, by the same work."""
    return bool(item.source and item.work == work and item.source.same_file(source))


def unchanged(latest: Snapshot | None, tried: Mapping[str, tuple[Source, str]]) -> set[str]:
    """Shards that the last version lacks and that are as they were when they were tried.

    Args:
        tried: the source of each shard, and the work that is to be done on it.
    """
    found = set()
    for item in latest.quarantined if latest else ():
        source, work = tried.get(item.shard, (None, None))
        if source and is_unchanged(item, source, work):
            found.add(item.shard)
    return found


def since(version: Snapshot) -> dict[str, str]:
    """Since when each shard is left out, UTC; the version's own time where it does not say."""
    noted = version.summary.get(KEY)
    known = noted if isinstance(noted, dict) else {}
    return {item.shard: str(known.get(item.shard, version.created)) for item in version.quarantined}


def noted(latest: Snapshot | None, left_out: Iterable[Quarantined]) -> dict[str, Any]:
    """What the next version's summary says."""
    before = since(latest) if latest else {}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    found = {item.shard: before.get(item.shard, now) for item in left_out}
    return {KEY: found} if found else {}


def told_of(version: Snapshot) -> dict[str, Any]:
    """How many shards a version lacks, since when the first of them, and their names."""
    moments = since(version)
    names = sorted(version.quarantined, key=lambda item: (moments[item.shard], item.shard))
    return {
        "shards": len(names),
        "since": min(moments.values(), default=None),
        "names": [item.uri for item in names[:_NAMED]],
    }


def tell(store: str, version: Snapshot, *, but: Collection[str] = ()) -> None:
    """Warns of the shards that a version lacks.

    Args:
        but: shards that were warned of already.
    """
    moments = since(version)
    items = [item for item in version.quarantined if item.shard not in but]
    for item in items[:_NAMED]:
        console.warn(
            f"left out since {moments[item.shard]}: {reason_of(item)}", shard=item.uri
        )  # a reason names its file
    if items:
        console.warn(
            f"{store} version {version.version}: {len(items)} shard(s) are left out, the first "
            f"since {min(moments[item.shard] for item in items)}; each is tried again when it "
            "changes, all of them with --on-bad-shard fail (on_bad_shard: fail)"
        )


def refuse(versions: Sequence[tuple[str, Snapshot]]) -> None:
    """Fails a night, after it has committed, where stores lack shards.

    Raises:
        QuarantineError: naming them.
    """
    lines = [
        f"{store}: {reason_of(item)} (since {since(version)[item.shard]})"
        for store, version in versions
        for item in version.quarantined
    ]
    if lines:
        raise QuarantineError(lines)


def reason_of(item: Quarantined) -> str:
    """Why a shard is left out; its URI stands in it once."""
    return item.reason if item.uri in item.reason else f"{item.uri}: {item.reason}"
