"""Failures of a pass: logged as they occur; a pass whose shards fail alike is stopped."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from raypq import console
from raypq.errors import JobError, ShardFailure
from raypq.execution.pass_counts import PassCounts

_MAX_LOGGED = 10  # failures of a pass; its error names all of them
# So many failures alike in a row, or so many and more than this share of all shards, end a pass.
_ALIKE, _SHARE = 20, 0.2
# What differs between the messages of one kind: places, quoted values, numbers.
_PARTICULARS = re.compile(r"\S*/\S*|'[^']*'|\"[^\"]*\"|\w*\d\w*")


class FailureWatch:
    """Watches the failures of one pass.

    An expired token or a full disk fails every shard in the same way. Then the pass is stopped, and
    the others are not tried.

    Args:
        total: shards of the pass. quarantine: whether bad input is left out, and the pass goes on.
        counts: updated.
    """

    def __init__(self, total: int, *, quarantine: bool, counts: PassCounts | None = None) -> None:
        self._total, self._quarantine = total, quarantine
        self._counts = counts or PassCounts()
        self._logged = self._in_a_row = 0
        self._kinds: Counter[str] = Counter()
        self._last = ""

    def quarantines(self, failure: ShardFailure) -> bool:
        """Whether the pass goes on without this shard."""
        return self._quarantine and failure.bad_input

    def succeeded(self, images: int = 0) -> None:
        """Records that a shard of so many images is finished."""
        self._in_a_row = 0
        self._counts.done += 1
        self._counts.images += images

    def failed(self, failure: ShardFailure) -> bool:
        """Records and logs a failure.

        Returns:
            Whether the pass is to be stopped.
        """
        if self.quarantines(failure):
            console.warn(f"quarantined {failure}", shard=failure.shard)
            self._counts.quarantined.append(failure)
            return False
        self._counts.failed.append(failure)
        self._logged += 1
        if self._logged <= _MAX_LOGGED:
            more = "; further failures are counted" if self._logged == _MAX_LOGGED else ""
            console.warn(f"failed: {failure}{more}", shard=failure.shard)
        kind = kind_of(failure)
        self._in_a_row = self._in_a_row + 1 if kind == self._last else 1
        self._last = kind
        self._kinds[kind] += 1
        count = self._kinds[kind]
        return self._in_a_row >= _ALIKE or (count >= _ALIKE and count > _SHARE * self._total)


def kind_of(failure: ShardFailure) -> str:
    """The reason without what is particular to a shard."""
    return _PARTICULARS.sub("…", failure.reason.replace(failure.shard, ""))


def raise_failures(
    failures: Sequence[ShardFailure],
    done: int,
    on_bad_shard: str,
    *,
    kept: int = 0,
    not_tried: int = 0,
) -> None:
    """Raises the failures of a pass, unless all are of bad input that is quarantined.

    Args:
        done: number of shards that the pass finished. kept: of shards that need no work.
        not_tried: of the other shards.

    Raises:
        JobError: naming the shards that failed.
    """
    fatal = [item for item in failures if on_bad_shard == "fail" or not item.bad_input]
    if fatal or (failures and not done + kept):
        raise JobError(failures, done, kept, not_tried)
