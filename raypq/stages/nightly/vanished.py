"""Sources that lost shards or images: a night refuses to let more of them go than it may."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raypq import console
from raypq.config import ReindexJob
from raypq.data.codes import CodeFile
from raypq.data.layouts import image_folder, lance
from raypq.data.layouts.image_folder import Part
from raypq.data.storage import Shard, join
from raypq.data.store.shard_writer import Receipt
from raypq.data.store.snapshot import Snapshot
from raypq.errors import InputError

_ROWS = 1 << 16


def refuse_vanished_shards(
    job: ReindexJob, latest: Snapshot | None, removed: Sequence[Receipt]
) -> None:
    """Refuses a source that lost more of its shards than ``max_removed`` allows.

    A Lance dataset that is compacted has other fragments, so its rows decide.

    Raises:
        InputError: naming one.
    """
    before = len(latest.shards) if latest else 0
    if latest is None or len(removed) <= job.max_removed * before:
        return
    rearranged = _rearranged(job, latest, removed)
    removed = [item for item in removed if lance.root_of(item.source.uri) not in rearranged]
    gone = len(removed)
    if gone <= job.max_removed * before:
        return
    raise InputError(
        ", ".join(job.source),
        expected=f"at least {math.ceil((1 - job.max_removed) * before)} of the {before} shards of "
        f"{job.codes} version {latest.version} (max_removed: {job.max_removed:g})",
        found=f"{gone} of them gone, such as {removed[0].source.uri}; nothing was changed. If the "
        "files were compacted or written anew under other names, one night with max_removed: 1 "
        "takes the new ones for them",
    )


def _rearranged(job: ReindexJob, latest: Snapshot, removed: Sequence[Receipt]) -> set[str]:
    """The Lance datasets that lost fragments, but no more rows than they may."""
    rows: dict[str, int] = defaultdict(int)
    for uri, count in zip(*map(latest.shards.values, ("source_uri", "rows")), strict=True):
        if root := lance.root_of(uri):
            rows[root] += count
    found = set()
    for root in {lance.root_of(receipt.source.uri) for receipt in removed} - {None}:
        assert root is not None, "left out"
        with suppress(InputError):  # a dataset that is gone
            if lance.count_rows(root) >= (1 - job.max_removed) * rows[root]:
                found.add(root)
    if found:
        console.say(f"{', '.join(sorted(found))}: other fragments than before, as a compaction "
                    "leaves them; their rows are encoded again")  # fmt: skip
    return found


def refuse_vanished_images(
    job: ReindexJob, latest: Snapshot | None, shards: Sequence[Shard]
) -> None:
    """Refuses folders of images that lost more of their images than ``max_removed`` allows.

    Their parts divide and unite, so removed shards do not tell removed images. The ids in the last
    version's files are read only if so many parts changed that they might hold too many.
    """
    if latest is None:
        return
    is_part = pc.ends_with(latest.shards.column("source_uri"), image_folder.SUFFIX)
    parts = latest.shards.select(np.flatnonzero(np.asarray(is_part)))
    if not len(parts):
        return
    states = {(shard.uri, shard.modified) for shard in shards}
    changed = [
        receipt
        for receipt in parts
        if Part.of(receipt.source.uri)
        and (receipt.source.uri, receipt.source.modified) not in states
    ]
    most = job.max_removed * latest.rows
    if sum(receipt.rows for receipt in changed) <= most:
        return
    listed = {
        name
        for shard in shards
        if shard.files is not None
        for name in shard.files.column("name").to_pylist()
    }
    gone, example = 0, ""
    for receipt in changed:
        for ids in ids_of(join(job.codes, receipt.path)):
            missing = [name for name in ids.to_pylist() if name not in listed]
            gone, example = gone + len(missing), example or next(iter(missing), "")
    if gone > most:
        raise InputError(
            ", ".join(job.source),
            expected=f"at least {math.ceil(latest.rows - most)} of the {latest.rows} "
            f"images of {job.codes} version {latest.version} (max_removed: "
            f"{job.max_removed:g})",
            found=f"{gone} of them gone, such as {example}; nothing was changed",
        )


def ids_of(uri: str) -> Iterator[pa.Array]:
    """The ids of a code file; none if it is gone or damaged, since it is made anew then."""
    with suppress(InputError, OSError):
        yield from CodeFile.open(uri).ids(_ROWS)
