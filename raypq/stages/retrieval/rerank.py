"""Exact re-ranking: candidates from the codes, scored again by their original vectors.

A candidate's *row reference* is its file and row in the code store. A code file has the rows of its
feature file in order, so the reference holds for the feature file too. Only row groups with
candidates are read, and only as far as the last candidate. (Pages before the first are decoded in
vain: pyarrow offers no page index from Python.) The id of a row must equal the candidate's;
otherwise the features are not those that were encoded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq import console, kernels
from raypq.config import Columns
from raypq.data import arrays, search_results
from raypq.data.feature_columns import stored_width
from raypq.data.ids import IdKind
from raypq.data.ids import read as read_ids
from raypq.data.layouts import open_shard
from raypq.data.network_info import BackboneInfo, check_equal
from raypq.data.storage import Shard, canonical
from raypq.data.store.shard_writer import Receipt
from raypq.data.store.sources import open_sources
from raypq.errors import InputError
from raypq.kernels.tables import squared_norms
from raypq.methods.base import Model
from raypq.stages.retrieval.code_blocks import ROW_BITS
from raypq.stages.retrieval.query_vectors import apply_in_fixed_blocks

_BATCH_ROWS = 4096


@dataclass(frozen=True, kw_only=True)
class RescoreTask:
    """Feature files whose candidates are scored.

    Attributes:
        path: of the partial result with all candidates.
        shards: for each file the index of its code file, the shard, and the model's fingerprint.
    """

    path: str
    shards: tuple[tuple[int, Shard, str], ...]
    columns: Columns

    @property
    def name(self) -> str:
        """Name for errors and logs."""
        return self.shards[0][1].uri


def sources(receipts: Sequence[Receipt], uris: Sequence[str], columns: Columns) -> list[Shard]:
    """The feature file of each code file: by its URI, or by the end of its path if it was moved.

    Raises:
        InputError: a file is missing, or is not the one that was encoded.
    """
    shards = open_sources(uris, columns).shards
    by_uri = {shard.uri: shard for shard in shards}
    files = {receipt.shard: by_uri.get(canonical(receipt.source.uri)) for receipt in receipts}
    matched = {shard.uri for shard in files.values() if shard}
    others = [shard for shard in shards if shard.uri not in matched]
    missing = [receipt for receipt in receipts if files[receipt.shard] is None]
    if len(receipts) == len(shards) == len(missing) == 1:  # a single file may have any name
        files[missing[0].shard] = others[0]
    elif missing:
        files |= _match_moved(missing, others, uris)
    changed = []
    for receipt in receipts:
        shard = files[receipt.shard]
        assert shard is not None, "every receipt has a file"
        if shard.size != receipt.source.size:
            raise InputError(
                shard.uri,
                expected=f"the file that was encoded ({receipt.source.size} bytes)",
                found=f"one of {shard.size} bytes",
            )
        if shard.uri in matched and shard.modified != receipt.source.modified:
            changed.append(shard.uri)
    if changed:
        console.warn(
            f"{len(changed)} feature file(s) may have changed since they were encoded, such as "
            f"{changed[0]}: candidates come from the codes, exact scores from the present files"
        )
    return [shard for receipt in receipts if (shard := files[receipt.shard])]


def _match_moved(
    receipts: Sequence[Receipt], shards: Sequence[Shard], uris: Sequence[str]
) -> dict[str, Shard | None]:
    """Matches sources of receipts with files whose paths have the same end, longest ends first."""
    sources = {item.shard: PurePosixPath(item.source.uri).parts for item in receipts}
    files = {shard.uri: PurePosixPath(shard.uri).parts for shard in shards}
    by_uri = {shard.uri: shard for shard in shards}
    matches: dict[str, Shard | None] = {}
    for length in range(max(map(len, sources.values()), default=0), 0, -1):
        source_ends, file_ends = _ends(sources, length), _ends(files, length)
        for end in source_ends.keys() & file_ends.keys():
            if len(source_ends[end]) == len(file_ends[end]) == 1:
                (stem,), (uri,) = source_ends[end], file_ends[end]
                matches[stem] = by_uri[uri]
                del sources[stem], files[uri]
    if sources:
        missing = next(item for item in receipts if item.shard in sources)
        raise InputError(
            ", ".join(uris),
            expected=f"the feature file {missing.source.uri} that was encoded",
            found=f"{len(files)} other file(s), none of which is that one for sure",
        )
    return matches


def _ends(paths: Mapping[str, tuple[str, ...]], length: int) -> dict[tuple[str, ...], list[str]]:
    """Names of the paths by their last ``length`` parts."""
    names: dict[tuple[str, ...], list[str]] = {}
    for name, parts in paths.items():
        if len(parts) >= length:
            names.setdefault(parts[-length:], []).append(name)
    return names


def rescore(
    task: RescoreTask,
    store: str,
    models: Mapping[str, Model],
    tables: Mapping[str, kernels.Tables],
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Positions of the candidates [T·k] that come from the task's files, and their exact scores."""
    candidates = search_results.read_partial(store, task.path)
    assert candidates.row_ref is not None, "a scan for a rerank gives row references"
    row_ref = candidates.row_ref.reshape(-1)
    parts = [(np.empty(0, np.int64), np.empty(0, np.float32))]
    for index, shard, fingerprint in task.shards:
        flat = np.flatnonzero(row_ref >> ROW_BITS == index)
        if len(flat):
            rows = row_ref[flat] & ((1 << ROW_BITS) - 1)
            ids = candidates.ids.take(pa.array(flat))
            score = _score(
                shard,
                task.columns,
                models[fingerprint],
                tables[fingerprint],
                rows,
                flat // candidates.k,
                ids,
            )
            parts.append((flat, score))
    flats, scores = zip(*parts, strict=True)
    return np.concatenate(flats), np.concatenate(scores)


def _score(
    shard: Shard,
    columns: Columns,
    model: Model,
    tables: kernels.Tables,
    rows: NDArray[np.int64],
    query: NDArray[np.int64],
    ids: pa.Array,
) -> NDArray[np.float32]:
    """Exact scores of pairs (row, query) [n]."""
    out = np.empty(len(rows), np.float32)
    order = np.argsort(rows, kind="stable")
    kind: IdKind = "string" if pa.types.is_string(ids.type) else "int64"
    for batch_rows, X, names in read_rows(shard, columns, model, np.unique(rows), kind):
        U = apply_in_fixed_blocks(X, model.embed)
        low, high = np.searchsorted(rows[order], [batch_rows[0], batch_rows[-1] + 1])
        pairs = order[low:high]
        at = np.searchsorted(batch_rows, rows[pairs])
        check_ids(shard, names.take(pa.array(at)), ids.take(pa.array(pairs)), rows[pairs])
        scale, offset = tables.row_terms(squared_norms(U))
        for start in range(0, len(pairs), _BATCH_ROWS):
            part = slice(start, start + _BATCH_ROWS)
            u, w = U[at[part]].astype(np.float64), tables.W[query[pairs[part]]]
            dot = np.einsum("nd,nd->n", u, w.astype(np.float64))
            value = (dot * scale[at[part]] + offset[at[part]]) + tables.bias[query[pairs[part]]]
            with np.errstate(over="ignore"):  # check_scores raises
                out[pairs[part]] = value.astype(np.float32)
    return kernels.check_scores(out)


def check_ids(shard: Shard, ids: pa.Array, expected: pa.Array, rows: NDArray[np.int64]) -> None:
    """Compares the ids of rows of a feature file with those of the code store.

    Raises:
        InputError: naming the first row that differs.
    """
    differ = np.flatnonzero(np.asarray(ids) != np.asarray(expected))  # objects, for strings
    if len(differ):
        first = int(differ[0])
        raise InputError(
            f"{shard.uri}, row {rows[first]}",
            expected=f"id {expected[first].as_py()!r} as in the code store",
            found=repr(ids[first].as_py()),
        )


def read_rows(
    shard: Shard, columns: Columns, model: Model, rows: NDArray[np.int64], kind: IdKind
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32], pa.Array]]:
    """Reads rows (ascending) of a feature file, in batches: row numbers, vectors [n, dx], ids.

    Raises:
        InputError: a row beyond the file's end, a wrong width or type, NaN or Inf, or features of
            another backbone than the model's.
    """
    with open_shard(shard, columns) as file:
        where = f"{shard.uri}, column '{columns.feature}'"
        field = file.field(columns.feature)
        check_equal(model.backbone, BackboneInfo.of(field, where=where), where=where)
        file_width = stored_width(field) or model.dx
        file.field(columns.id)
        ends = np.cumsum([0, *file.group_rows])
        if rows[-1] >= ends[-1]:
            raise InputError(shard.uri, expected=f"a row {rows[-1]}", found=f"{ends[-1]} rows")
        for group in np.unique(np.searchsorted(ends, rows, side="right") - 1):
            group_rows = rows[(rows >= ends[group]) & (rows < ends[group + 1])]
            start = int(ends[group])
            for batch in file.batches(_BATCH_ROWS, [columns.id, columns.feature], group=int(group)):
                stop = start + len(batch)
                batch_rows = group_rows[(group_rows >= start) & (group_rows < stop)]
                if len(batch_rows):
                    # Converted before rows are taken: pyarrow cannot take rows of every type.
                    column = batch.column(columns.feature)
                    raw = arrays.matrix(column, width=file_width, where=where, row0=start)
                    names = read_ids(batch.column(columns.id), kind, where=shard.uri, row0=start)
                    index = batch_rows - start
                    X = _finite(arrays.any_float32(raw[index]), where, batch_rows)
                    yield batch_rows, X, names.take(pa.array(index))
                start = stop
                if start > group_rows[-1]:
                    break


def _finite(X: NDArray[np.float32], where: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    bad = np.flatnonzero(~np.isfinite(X).all(axis=1))
    if len(bad):
        raise InputError(
            f"{where}, row {rows[bad[0]]}", expected="finite values", found="NaN or Inf"
        )
    return X
