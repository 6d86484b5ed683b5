"""Blocks of stored codes: reading them, and their best rows for each query.

**Ties.** Equal scores are ordered by id, and this must hold at the k-th place too: of many rows
with the score of the k-th, those with the lowest ids belong in the answer, wherever in the block
they stand. The kernel breaks ties by row. So one row more than k is asked for; only if that one
ties with the k-th can a lower id have been left out, and then those queries alone are scanned
again over the rows in the order of their ids, where the kernel's rule is this one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from raypq import kernels
from raypq.data.codes import CodeBatch, CodeFile
from raypq.data.filters import Filter
from raypq.data.search_results import SearchResults
from raypq.data.storage import Shard
from raypq.data.store.snapshot import Snapshot
from raypq.errors import InputError, ModelError
from raypq.methods.base import Model
from raypq.stages.stores.code_store import check_model
from raypq.stages.stores.shard_task import stored_shards

GROUP_ROWS = 1 << 19  # rows that are scanned in one go: beginning anew costs each query some time
_BATCH = 1 << 17
PLACE_BITS = 40  # of the row within its file, in a place


@dataclass(frozen=True, kw_only=True, eq=False)
class CodeBlock:
    """Rows that one model encoded.

    Attributes:
        B: codes [n, M]. ids: n values.
        place: file and row of each, ``index << PLACE_BITS | row`` [n] int64.
        labels: strings or null, where they were asked for; in a file without labels all are null.
    """

    fingerprint: str
    B: NDArray[np.uint8]
    ids: pa.Array
    place: NDArray[np.int64]
    labels: pa.StringArray | None = None

    @classmethod
    def join(cls, blocks: Sequence[CodeBlock]) -> CodeBlock:
        """Several blocks of one model as one."""
        first = blocks[0]
        if len(blocks) == 1:
            return first
        labelled = first.labels is not None
        return cls(
            fingerprint=first.fingerprint,
            B=np.concatenate([block.B for block in blocks]),
            ids=pa.concat_arrays([block.ids for block in blocks]),
            place=np.concatenate([block.place for block in blocks]),
            labels=pa.concat_arrays([block.labels for block in blocks]) if labelled else None,
        )

    def take(self, rows: NDArray[np.int64]) -> CodeBlock:
        """Some of the rows, in the order given."""
        index = pa.array(rows)
        return CodeBlock(
            fingerprint=self.fingerprint,
            B=self.B[rows],
            ids=self.ids.take(index),
            place=self.place[rows],
            labels=None if self.labels is None else self.labels.take(index),
        )


def read_block(
    shard: Shard,
    models: Mapping[str, Model],
    id_type: pa.DataType,
    keep: Filter | None = None,
    *,
    labels: bool = False,
) -> CodeBlock:
    """The rows of one code file that the filter keeps.

    Args:
        models: of the store, by fingerprint. id_type: of the store (``id_type_of``); a file
            without rows may name another one.

    Raises:
        InputError: the file is damaged, or has ids of another type.
        ModelError: its codes are not of these models.
    """
    file = CodeFile.open(shard.uri, size=shard.size)
    check_model(file, models)
    if file.rows and file.id_type != id_type:
        raise InputError(
            shard.uri,
            expected=f"ids of one type in a store, {id_type} as in its first file",
            found=f"{file.id_type}; encode it again from features whose ids are all of one type",
        )
    if not file.rows:
        return CodeBlock(
            fingerprint=file.fingerprint,
            B=np.empty((0, file.M), np.uint8),
            ids=pa.array([], id_type),
            place=np.empty(0, np.int64),
            labels=pa.array([], pa.string()) if labels else None,
        )
    chosen = None if keep is None else keep.compile(id_type, file.uri)
    parts: list[CodeBlock] = []
    row = 0
    for batch in file.batches(_BATCH, labels=labels or keep is not None):
        block = CodeBlock(
            fingerprint=file.fingerprint,
            B=batch.B,
            ids=batch.ids,
            place=np.arange(row, row + len(batch.B)) | shard.index << PLACE_BITS,
            labels=_labels(batch) if labels else None,
        )
        row += len(batch.B)
        parts.append(block if chosen is None else block.take(np.flatnonzero(chosen(batch))))
    return CodeBlock.join(parts)


def _labels(batch: CodeBatch) -> pa.StringArray:
    return pa.nulls(len(batch.B), pa.string()) if batch.labels is None else batch.labels


def id_type_of(store: str, version: Snapshot) -> pa.DataType:
    """The type of the ids in a version of a code store: that of its first file with rows.

    Raises:
        InputError: that file is damaged.
    """
    for shard, receipt in zip(stored_shards(store, version), version.shards, strict=True):
        if receipt.rows:
            return CodeFile.open(shard.uri, size=shard.size).id_type
    return pa.string()


def blocks_of(
    shards: Iterable[Shard],
    models: Mapping[str, Model],
    id_type: pa.DataType,
    keep: Filter | None = None,
) -> Iterator[CodeBlock]:
    """The rows of several files, joined by model up to ``GROUP_ROWS`` at a time."""
    held: dict[str, list[CodeBlock]] = {}
    for shard in shards:
        block = read_block(shard, models, id_type, keep)
        waiting = held.setdefault(block.fingerprint, [])
        waiting.append(block)
        if sum(len(part.B) for part in waiting) >= GROUP_ROWS:
            yield CodeBlock.join(held.pop(block.fingerprint))
    for waiting in held.values():
        yield CodeBlock.join(waiting)


def groups(
    shards: Sequence[Shard], rows: Sequence[int], most: int | None = None
) -> list[tuple[Shard, ...]]:
    """Consecutive shards together up to ``most`` rows (``GROUP_ROWS``); a larger shard is a group
    of its own."""
    most = most or GROUP_ROWS
    found: list[list[Shard]] = []
    held = 0
    for shard, count in zip(shards, rows, strict=True):
        if not found or held + count > most:
            found.append([])
            held = 0
        found[-1].append(shard)
        held += count
    return [tuple(group) for group in found]


def topk(block: CodeBlock, tables: kernels.Tables, k: int, *, device: str = "cpu") -> SearchResults:
    """The k best rows of a block for each query; ties by id.

    Raises:
        ModelError: codes that do not fit the tables.
    """
    M = len(tables.C)
    if block.B.shape[1] != M:
        raise ModelError(
            f"codes of model {block.fingerprint[:12]}",
            expected=f"{M} sub-codebooks",
            found=str(block.B.shape[1]),
        )
    score, row = kernels.topk_per_query(block.B, tables, k + 1, device=device)
    if score.shape[1] > k:
        tied = np.flatnonzero(score[:, k] == score[:, k - 1])
        score, row = score[:, :k], row[:, :k]
        if len(tied) and not ascending(block.ids):
            order = by_id(block.ids)
            some = replace(tables, W=tables.W[tied], bias=tables.bias[tied])
            again, at = kernels.topk_per_query(block.B[order], some, k, device=device)
            score[tied], row[tied] = again, order[at]
    ids = block.ids.take(pa.array(row.reshape(-1)))
    return SearchResults(score=score, ids=ids, place=block.place[row])


def ascending(ids: pa.Array) -> bool:
    """Whether ids stand in order already, equal ones allowed."""
    if len(ids) < 2:
        return True
    return bool(pc.all(pc.less_equal(ids.slice(0, len(ids) - 1), ids.slice(1))).as_py())


def by_id(ids: pa.Array) -> NDArray[np.int64]:
    """The rows in the order of their ids, equal ones as they stand."""
    return pc.sort_indices(ids).to_numpy().astype(np.int64)
