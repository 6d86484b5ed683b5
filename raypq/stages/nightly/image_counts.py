"""Images of a night by what happened to them, from receipts and the counts in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain

from raypq.config import EncodeJob
from raypq.data.layouts import open_shard
from raypq.data.storage import join
from raypq.data.store.receipts import Receipts
from raypq.data.store.shard_writer import Receipt, RunCounts
from raypq.errors import RaypqError
from raypq.stages.nightly.source_diff import ReindexPlan
from raypq.stages.nightly.vanished import ids_of
from raypq.stages.stores.shard_task import ShardTask


@dataclass(frozen=True, kw_only=True)
class ImageCounts:
    """Images of a source, compared with the last version of their codes.

    The version has the images that are new, changed, kept and encoded again. The last version had
    those that are changed, kept, encoded again and removed, and the known ones of those left out.

    Image jobs compare images one by one. Rows of features have no versions, and those of a code
    file that is gone are unknown: of a changed shard, as many rows as it had count as changed, and
    the difference as new or removed.

    Attributes:
        removed: no longer in the source. kept: with their codes.
        encoded_again: not changed, but under another model, or because their code file was gone.
        left_out: undecodable images of shards that were read, and images of shards that failed.
    """

    new: int
    changed: int
    removed: int
    kept: int
    encoded_again: int
    left_out: int

    def __str__(self) -> str:
        again = f", {self.encoded_again:,} encoded again" if self.encoded_again else ""
        return (
            f"{self.new:,} new, {self.changed:,} changed, {self.removed:,} removed, "
            f"{self.kept:,} kept{again}, {self.left_out:,} left out"
        )

    def as_dict(self) -> dict[str, int]:
        """The counts by name."""
        return asdict(self)


def of_night(
    plan: ReindexPlan, tasks: Sequence[ShardTask], receipts: Sequence[Receipt], job: EncodeJob
) -> ImageCounts:
    """The counts of a night, including what an interrupted run did for it.

    Args:
        tasks: all shards of the run. receipts: of the new version.
    """
    last = plan.latest.shards if plan.latest else Receipts.of(())
    before = dict(zip(last.values("shard"), last.values("rows"), strict=True))
    paths = set(last.values("path"))
    same = {task.shard.stem for task in (*plan.output_missing, *plan.migrating)}
    kept = changed = again = fresh = left_out = known_left_out = 0
    for item in receipts:
        held = before.get(item.shard, 0)
        counts = item.counts or RunCounts()
        left_out += counts.left_out
        if item.path in paths:
            kept += item.rows
        elif counts.kept is not None:  # images that were compared
            kept += counts.kept
            again += counts.again
            changed += counts.changed
            known_left_out += counts.known_left_out
            fresh += item.rows - counts.kept - counts.again - counts.changed
        else:
            known = min(item.rows, held)
            if item.shard in same:
                again += known
            else:
                changed += known
            fresh += item.rows - known
            known_left_out += min(counts.left_out, held - known)
    done = {item.shard for item in receipts}
    for task in tasks:
        if task.shard.stem not in done:
            images, known = _of_failed(task, job)
            left_out += images
            known_left_out += known
    total = plan.latest.rows if plan.latest else 0
    return ImageCounts(
        new=fresh,
        changed=changed,
        removed=max(total - kept - changed - again - known_left_out, 0),
        kept=kept,
        encoded_again=again,
        left_out=left_out,
    )


def _of_failed(task: ShardTask, job: EncodeJob) -> tuple[int, int]:
    """The images of a shard that is left out, and how many of them the last version holds."""
    held = sum(item.rows for item in task.before)
    if task.shard.files is not None:  # a part of a folder: other parts may have its images
        names = set(task.shard.files.column("name").to_pylist())
        ids = chain.from_iterable(ids_of(join(job.output, item.path)) for item in task.before)
        return len(names), sum(name in names for array in ids for name in array.to_pylist())
    try:
        with open_shard(task.shard, job.columns) as file:
            return file.rows, min(file.rows, held)
    except (RaypqError, OSError):
        return held, held


def of_idle_night(plan: ReindexPlan) -> ImageCounts:
    """The counts of a night that changes nothing."""
    kept = plan.latest.rows if plan.latest else 0
    return ImageCounts(new=0, changed=0, removed=0, kept=kept, encoded_again=0, left_out=0)
