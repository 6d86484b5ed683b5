"""The classes of a group of candidates, prepared for scans: as one, or in parts from a file.

Tables of many classes do not fit in memory: at M = 50, K = 256 and D = 1000 those of a million take
12.8 GB, and the weights behind them 4 GB. Such a group keeps its weights in a temporary file. Its
parts are scanned one after another, or, where a sample shows that this is faster, only those leaves
that may hold a best class (``raypq.kernels.pruned``). Results are the same, bit for bit.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raypq import console, kernels
from raypq.kernels import native, pruned
from raypq.kernels.stored_tables import StoredTables

if TYPE_CHECKING:
    from raypq.kernels.leaves import Leaves

Rows = NDArray[Any]  # codes [n, M], uint8, or uncompressed vectors [n, D], float32
TopK = tuple[NDArray[np.float32], NDArray[np.int64]]  # scores and classes, both [n, k]

WHOLE_BYTES = 1 << 30  # of tables and weights that a worker holds for a group
PART_BYTES = 400 << 20  # of those of a part
STORED_CODE_ROWS = 262_144  # codes for which the tables of each part are made, at most
_RESULT_BYTES = 256 << 20  # of their results
# Nanoseconds of a thread, on a processor of 2023: for a multiplication and addition of a table, a
# lookup, one of an exact product, and to find the leaf of a class.
_TABLE, _LOOKUP, _EXACT, _LEAF = 0.035, 0.02, 0.15, 50_000.0
_SAMPLE = 512  # codes


def bytes_of(M: int, K: int, D: int, T: int) -> int:
    """Bytes of the tables of T classes, of their weights and of their prototypes."""
    return T * (M * K + 2 * 4 * D)


def stored_code_rows(k: int, D: int) -> int:
    """Codes for which the tables of each part are made.

    Args:
        k: classes of each. D: width of the vectors that they are decoded to; 0 where they are not.
    """
    return max(1, min(STORED_CODE_ROWS, _RESULT_BYTES // (12 * k + 4 * D)))


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassGroup:
    """Lookup tables of a group of candidates.

    Attributes:
        owner: as of ``candidates.Prototypes``.
    """

    tables: kernels.Tables
    owner: NDArray[np.int64] | None = None

    @property
    def T(self) -> int:
        """Number of classes."""
        return self.tables.T if self.owner is None else int(self.owner[-1]) + 1

    @property
    def like(self) -> kernels.Tables:
        """Tables with the codebooks and the metric of the group's."""
        return self.tables

    def parts(self) -> Iterator[tuple[int, kernels.Tables, NDArray[np.int64] | None]]:
        """All classes: the number of the first one, their tables, and the owners of the rows."""
        yield 0, self.tables, self.owner

    def topk(self, rows: Rows, k: int, device: str) -> TopK:
        """The top k classes, ties to the lower class; a class with several prototypes has the score
        of its best one."""
        return _topk(rows, self.tables, self.owner, k, device)


class StoredGroup:
    """A group whose tables are in a file; each thread that scans it holds a part.

    Args:
        stored: the classes. rows: codes that will be scanned, as far as it is known.
        part_bytes: as ``PART_BYTES``.
    """

    owner = None

    def __init__(self, stored: StoredTables, rows: int, part_bytes: int = PART_BYTES) -> None:
        self._stored, self._rows = stored, rows
        M, K, _ = stored.like.C.shape
        self._part = max(1, part_bytes // bytes_of(M, K, stored.D, 1))
        self._lock = threading.Lock()
        self._leaves: Leaves | None = None
        self._chosen = False

    @property
    def T(self) -> int:
        """Number of classes."""
        return self._stored.T

    @property
    def like(self) -> kernels.Tables:
        """Tables with the codebooks and the metric of the group's, without classes."""
        return self._stored.like

    def parts(self) -> Iterator[tuple[int, kernels.Tables, None]]:
        """As ``ClassGroup.parts``."""
        for first, tables in self._stored.parts(self._part):
            yield first, tables, None

    def topk(self, rows: Rows, k: int, device: str) -> TopK:
        """As ``ClassGroup.topk``."""
        if rows.dtype == np.uint8 and device == "cpu" and len(rows):
            with self._lock:
                self._choose(rows, k)
            if self._leaves is not None:
                best = pruned.topk_per_code(rows, self._leaves, k, threads=kernels.threads())
                return kernels.check_scores(best[0]), best[1]
        return self.scan(rows, k, device)

    def scan(self, rows: Rows, k: int, device: str) -> TopK:
        """As ``topk``, by a scan of all classes."""
        k = min(k, self.T)
        score = np.full((len(rows), k), -np.inf, np.float32)
        classes = np.full((len(rows), k), -1, np.int64)
        for first, tables, _ in self.parts():
            part, index = _topk(rows, tables, None, k, device)
            # Ties go to the lower class, so a part changes only what it scores higher.
            better = np.flatnonzero(part[:, 0] > score[:, -1])
            parts = (score[better], classes[better]), (part[better], index[better] + first)
            score[better], classes[better] = kernels.merge_topk(parts, k)
        return score, classes

    def _choose(self, B: NDArray[np.uint8], k: int) -> None:
        """Decides once whether to leave out leaves, by a sample of codes."""
        if self._chosen:
            return
        self._chosen = True
        M = B.shape[1]
        scan = self._rows * self.T * M * _LOOKUP
        if not native.available() or scan < 2 * _LEAF * self.T:
            console.say(
                f"{self.T:,} classes are scanned in parts of {self._part:,}: for {self._rows:,} "
                "codes it does not pay to look for classes that can be left out"
            )
            return
        from raypq.kernels import leaves  # here, since it imports torch

        start = time.monotonic()
        kernels.apply_thread_limit()
        found = leaves.build(self._stored, threads=kernels.threads())
        sample = B[np.linspace(0, len(B) - 1, min(len(B), _SAMPLE)).astype(np.int64)]
        share = pruned.pairs_left(sample, found, k, threads=kernels.threads()) / len(sample)
        full, some = _costs(found, share, min(self._rows, STORED_CODE_ROWS), B.shape[1])
        taken = some < full
        console.say(
            f"{self.T:,} classes in {len(found):,} leaves ({time.monotonic() - start:.0f} s): "
            f"{share.mean():.1%} of the leaves may hold a best class of a code, so that a scan of "
            f"these takes {some / full:.0%} of the time of a scan of all; "
            + ("they are scanned" if taken else "all are scanned")
        )
        if taken:
            self._leaves = found

    @property
    def leaves(self) -> Leaves | None:
        """The leaves, where some are left out."""
        return self._leaves


def _costs(found: Leaves, share: NDArray[np.float64], rows: int, M: int) -> tuple[float, float]:
    """Nanoseconds of a scan of all classes for some codes, and of one of the leaves that they want:
    ``share`` is that of the codes that want each leaf [L]."""
    from raypq.kernels import leaves  # as above

    like, D, size = found.tables.like, found.tables.D, np.diff(found.first)
    K, width = like.C.shape[1], leaves.GROUP
    table, lookups, exact = _TABLE * K * D * width, _LOOKUP * M * width, _EXACT * D
    full = found.tables.T / width * (table + lookups * rows)
    wanted = share * rows
    each = np.minimum(wanted * size * exact, table + wanted * lookups)
    bounds = len(found) / width * (table + lookups * rows)
    floors = rows * width * exact
    return full, float(each.sum()) + bounds + floors


def _topk(
    rows: Rows, tables: kernels.Tables, owner: NDArray[np.int64] | None, k: int, device: str
) -> TopK:
    if owner is not None:
        return kernels.topk_of_classes(rows, tables, owner, k, device=device)
    if rows.dtype == np.uint8:
        return kernels.topk_per_code(rows, tables, k, device=device)
    return kernels.topk_per_vector(rows, tables, k, device=device)
