"""Images of a night by what happened to them, from receipts and the counts of workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from raypq.data.store.shard_writer import Receipt
from raypq.stages.encoding.encode_worker import Encoded
from raypq.stages.nightly.source_diff import ReindexPlan


@dataclass(frozen=True, kw_only=True)
class ImageCounts:
    """Images of a source, compared with the last version of their codes.

    Image jobs compare images one by one. Rows of features have no versions: of a changed shard, as
    many rows as it had count as changed, and the difference as new or removed.

    Attributes:
        new, changed, removed, kept: of the version. encoded_again: of unchanged shards, under
            another model, or because their code file was gone.
        left_out: undecodable images, and those of shards that are left out for the first time.
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
    plan: ReindexPlan, encoded: Sequence[Encoded], receipts: Sequence[Receipt]
) -> ImageCounts:
    """The counts of a night.

    Args:
        encoded: results of the shards that workers processed. receipts: of the new version.
    """
    before = {item.shard: item for item in plan.latest.shards} if plan.latest else {}
    paths = {item.path for item in before.values()}
    results = {item.receipt.shard: item for item in encoded}
    same = {task.shard.stem for task in (*plan.output_missing, *plan.migrating)}
    kept = changed = again = fresh = 0
    for item in receipts:
        if item.path in paths:
            kept += item.rows
        elif item.shard in same:
            again += item.rows
        else:
            result = results.get(item.shard)  # none of a shard that an interrupted run finished
            if result is not None and result.changed is not None:
                kept += result.unchanged
                changed += result.changed
                fresh += item.rows - result.unchanged - result.changed
            else:
                known = min(item.rows, before[item.shard].rows) if item.shard in before else 0
                changed += known
                fresh += item.rows - known
    failed = {task.shard.stem for task in plan.tasks} - {item.shard for item in receipts}
    lost = sum(before[stem].rows for stem in failed if stem in before)
    total = sum(item.rows for item in before.values())
    return ImageCounts(
        new=fresh,
        changed=changed,
        removed=max(total - kept - changed - again - lost, 0),
        kept=kept,
        encoded_again=again,
        left_out=lost + sum(item.left_out for item in encoded),
    )


def of_idle_night(plan: ReindexPlan) -> ImageCounts:
    """The counts of a night that changes nothing."""
    kept = plan.latest.rows if plan.latest else 0
    return ImageCounts(new=0, changed=0, removed=0, kept=kept, encoded_again=0, left_out=0)
