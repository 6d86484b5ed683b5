"""Blocks of stored codes: reading them, and the top k rows of each query.

**Ties.** Equal scores are ordered by id, also at rank k: of many rows with the k-th score, those
with the lowest ids are in the result. The kernel breaks ties by row. So k + 1 rows are requested.
Only if the last one ties with the k-th can a lower id be missing; these queries are scanned again
over the rows ordered by id, where ties by row are ties by id.
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
from raypq.errors import InputError, ModelError
from raypq.methods.base import Model
from raypq.stages.stores.code_store import check_model

GROUP_ROWS = 1 << 19  # rows of a scan; every scan has a fixed cost for each query
_BATCH_ROWS = 1 << 17
SAMPLE_SHARDS = 64  # at most, of a sample
_STRING_BYTES = (1 << 31) - 1  # of an array of type string
ROW_BITS = 40  # of the row within its file, in a row reference


@dataclass(frozen=True, kw_only=True, eq=False)
class CodeBlock:
    """Codes of one model.

    Attributes:
        B: codes [n, M]. ids: n values; strings of more than 2 GiB are of type large_string.
        row_ref: file and row of each, ``index << ROW_BITS | row`` [n] int64.
        labels: strings or null, if they were read; all null for a file without labels.
    """

    fingerprint: str
    B: NDArray[np.uint8]
    ids: pa.Array
    row_ref: NDArray[np.int64]
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
            ids=_joined([block.ids for block in blocks]),
            row_ref=np.concatenate([block.row_ref for block in blocks]),
            labels=pa.concat_arrays([block.labels for block in blocks]) if labelled else None,
        )

    def take(self, rows: NDArray[np.int64]) -> CodeBlock:
        """Some of the rows, in the order given."""
        index = pa.array(rows)
        return CodeBlock(
            fingerprint=self.fingerprint,
            B=self.B[rows],
            ids=self.ids.take(index),
            row_ref=self.row_ref[rows],
            labels=None if self.labels is None else self.labels.take(index),
        )


def read_block(
    shard: Shard,
    models: Mapping[str, Model],
    id_type: pa.DataType,
    row_filter: Filter | None = None,
    *,
    labels: bool = False,
) -> CodeBlock:
    """The rows of one code file that pass the filter.

    Args:
        models: of the store, by fingerprint.
        id_type: of the store (``id_type_of``); a file without rows may have another one.
        labels: whether to read labels.

    Raises:
        InputError: the file is damaged, or has ids of another type.
        ModelError: none of these models made the codes.
    """
    file = open_codes(shard, models, id_type)
    if not file.rows:
        return CodeBlock(
            fingerprint=file.fingerprint,
            B=np.empty((0, file.M), np.uint8),
            ids=pa.array([], id_type),
            row_ref=np.empty(0, np.int64),
            labels=pa.array([], pa.string()) if labels else None,
        )
    select = None if row_filter is None else row_filter.compile(id_type, file.uri)
    parts: list[CodeBlock] = []
    row = 0
    for batch in file.batches(_BATCH_ROWS, labels=labels or row_filter is not None):
        block = CodeBlock(
            fingerprint=file.fingerprint,
            B=batch.B,
            ids=batch.ids,
            row_ref=np.arange(row, row + len(batch.B)) | shard.index << ROW_BITS,
            labels=_labels(batch) if labels else None,
        )
        row += len(batch.B)
        parts.append(block if select is None else block.take(np.flatnonzero(select(batch))))
    return CodeBlock.join(parts)


def _joined(ids: Sequence[pa.Array]) -> pa.Array:
    if pa.types.is_string(ids[0].type) and sum(part.nbytes for part in ids) > _STRING_BYTES:
        ids = [part.cast(pa.large_string()) for part in ids]
    return pa.concat_arrays(ids)


def codes_alone(
    shards: Sequence[Shard], models: Mapping[str, Model], id_type: pa.DataType
) -> CodeBlock:
    """The rows of several files of one model, whose ids are not read: all are null."""
    files = [open_codes(shard, models, id_type) for shard in shards]
    rows = sum(file.rows for file in files)
    B = np.empty((rows, files[0].M), np.uint8)
    row_ref = np.empty(rows, np.int64)
    start = 0
    for shard, file in zip(shards, files, strict=True):
        row_ref[start : start + file.rows] = np.arange(file.rows) | shard.index << ROW_BITS
        for codes in file.codes(_BATCH_ROWS) if file.rows else ():
            B[start : start + len(codes)] = codes
            start += len(codes)
    return CodeBlock(fingerprint=files[0].fingerprint, B=B, ids=pa.nulls(rows), row_ref=row_ref)


def open_codes(shard: Shard, models: Mapping[str, Model], id_type: pa.DataType) -> CodeFile:
    """A code file of a store, checked as ``read_block`` says."""
    file = CodeFile.open(shard.uri, size=shard.size)
    check_model(file, models)
    if file.rows and file.id_type != id_type:
        raise InputError(
            shard.uri,
            expected=f"ids of one type in a store, {id_type} as in its first file",
            found=f"{file.id_type}; encode it again from features whose ids are all of one type",
        )
    return file


def _labels(batch: CodeBatch) -> pa.StringArray:
    return pa.nulls(len(batch.B), pa.string()) if batch.labels is None else batch.labels


def blocks_of(
    shards: Iterable[Shard],
    models: Mapping[str, Model],
    id_type: pa.DataType,
    row_filter: Filter | None = None,
) -> Iterator[CodeBlock]:
    """The rows of several files, joined by model up to about ``GROUP_ROWS`` at a time."""
    by_model: dict[str, list[CodeBlock]] = {}
    for shard in shards:
        block = read_block(shard, models, id_type, row_filter)
        parts = by_model.setdefault(block.fingerprint, [])
        parts.append(block)
        if sum(len(part.B) for part in parts) >= GROUP_ROWS:
            yield CodeBlock.join(by_model.pop(block.fingerprint))
    for parts in by_model.values():
        yield CodeBlock.join(parts)


def groups(
    shards: Sequence[Shard], rows: Sequence[int], max_rows: int | None = None
) -> list[tuple[Shard, ...]]:
    """Groups of consecutive shards of up to ``max_rows`` rows (by default ``GROUP_ROWS``); a larger
    shard is a group of its own."""
    max_rows = max_rows or GROUP_ROWS
    grouped: list[list[Shard]] = []
    size = 0
    for shard, count in zip(shards, rows, strict=True):
        if not grouped or size + count > max_rows:
            grouped.append([])
            size = 0
        grouped[-1].append(shard)
        size += count
    return [tuple(group) for group in grouped]


def sample_codes(
    shards: Sequence[Shard],
    rows: Sequence[int],
    models: Mapping[str, Model],
    id_type: pa.DataType,
    *,
    size: int,
) -> NDArray[np.uint8]:
    """About ``size`` codes, or all, of random rows of a few shards, evenly chosen; in random order,
    the same each time."""
    filled = [pair for pair in zip(shards, rows, strict=True) if pair[1]]
    chosen = filled[:: -(-len(filled) // SAMPLE_SHARDS)]
    share = min(1.0, size / sum(count for _, count in chosen))
    rng = np.random.default_rng(0)
    parts = [
        read_block(shard, models, id_type).B[rng.random(count) < share] for shard, count in chosen
    ]
    return rng.permutation(np.concatenate(parts))


def topk(block: CodeBlock, tables: kernels.Tables, k: int, *, device: str = "cpu") -> SearchResults:
    """The top k rows of a block for each query; ties by id.

    Raises:
        ModelError: the codes do not fit the tables.
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
            tied_tables = replace(tables, W=tables.W[tied], bias=tables.bias[tied])
            score[tied], rank = kernels.topk_per_query(
                block.B[order], tied_tables, k, device=device
            )
            row[tied] = order[rank]
    ids = block.ids.take(pa.array(row.reshape(-1)))
    return SearchResults(score=score, ids=ids, row_ref=block.row_ref[row])


def ascending(ids: pa.Array) -> bool:
    """Whether ids are sorted; equal ones are allowed."""
    if len(ids) < 2:
        return True
    return bool(pc.all(pc.less_equal(ids.slice(0, len(ids) - 1), ids.slice(1))).as_py())


def by_id(ids: pa.Array) -> NDArray[np.int64]:
    """Indices that sort ids; stable."""
    return pc.sort_indices(ids).to_numpy().astype(np.int64)
