"""Exact re-ranking: candidates from the codes, scored again by their original vectors.

A candidate's *place* is its file and row in the code store. A code file has the rows of its feature
file in order, so the place is the vector's too: only the row groups with a candidate in them are
read, and each of them only as far as the last one. (Pages before the first are decoded and thrown
away: pyarrow offers no page index from Python.) A row's id must be the candidate's, or the features
are not those that were encoded.
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
from raypq.data.features import FeatureStore, stored_width
from raypq.data.ids import IdKind
from raypq.data.ids import read as read_ids
from raypq.data.storage import Shard, canonical, open_parquet
from raypq.data.store.shard_writer import Receipt
from raypq.errors import InputError
from raypq.kernels.tables import squared_norms
from raypq.methods.base import Model
from raypq.stages.retrieval.code_blocks import PLACE_BITS
from raypq.stages.retrieval.query_vectors import apply_in_fixed_blocks

_ROWS = 4096  # rows that are decoded together


@dataclass(frozen=True, kw_only=True)
class RescoreTask:
    """The candidates of a round that come from some feature files.

    Attributes:
        path: the partial answer with all candidates. shards: number of the code file, the feature
            file and the fingerprint of the model, of each.
    """

    path: str
    shards: tuple[tuple[int, Shard, str], ...]
    columns: Columns

    @property
    def name(self) -> str:
        """What errors call it."""
        return self.shards[0][1].uri


def sources(receipts: Sequence[Receipt], uris: Sequence[str], columns: Columns) -> list[Shard]:
    """The feature file of each code file: by its URI, or where the store moved, by its path's end.

    Raises:
        InputError: a file is missing, or is not the one that was encoded.
    """
    shards = FeatureStore.open(uris, columns).shards
    at = {shard.uri: shard for shard in shards}
    found = {receipt.shard: at.get(canonical(receipt.source.uri)) for receipt in receipts}
    taken = {shard.uri for shard in found.values() if shard}
    moved = [shard for shard in shards if shard.uri not in taken]
    lost = [receipt for receipt in receipts if found[receipt.shard] is None]
    if len(receipts) == len(shards) == len(lost) == 1:  # a single file may have any name
        found[lost[0].shard] = moved[0]
    elif lost:
        found |= _moved(lost, moved, uris)
    changed = []
    for receipt in receipts:
        shard = found[receipt.shard]
        assert shard is not None, "every receipt has its file by now"
        if shard.size != receipt.source.size:
            raise InputError(
                shard.uri,
                expected=f"the file that was encoded ({receipt.source.size} bytes)",
                found=f"one of {shard.size} bytes",
            )
        if shard.uri in taken and shard.modified != receipt.source.modified:
            changed.append(shard.uri)
    if changed:
        console.warn(
            f"{len(changed)} feature file(s) may have changed since they were encoded, such as "
            f"{changed[0]}: candidates come from the codes, exact scores from what is there now"
        )
    return [shard for receipt in receipts if (shard := found[receipt.shard])]


def _moved(
    receipts: Sequence[Receipt], shards: Sequence[Shard], uris: Sequence[str]
) -> dict[str, Shard | None]:
    """Pairs the sources of ``receipts`` with files whose paths end alike, longest ends first."""
    sources = {item.shard: PurePosixPath(item.source.uri).parts for item in receipts}
    files = {shard.uri: PurePosixPath(shard.uri).parts for shard in shards}
    by_uri = {shard.uri: shard for shard in shards}
    found: dict[str, Shard | None] = {}
    for length in range(max(map(len, sources.values()), default=0), 0, -1):
        wanted, there = _ends(sources, length), _ends(files, length)
        for end in wanted.keys() & there.keys():
            if len(wanted[end]) == len(there[end]) == 1:
                (stem,), (uri,) = wanted[end], there[end]
                found[stem] = by_uri[uri]
                del sources[stem], files[uri]
    if sources:
        lost = next(item for item in receipts if item.shard in sources)
        raise InputError(
            ", ".join(uris),
            expected=f"the feature file {lost.source.uri} that was encoded",
            found=f"{len(files)} other file(s), none of which is that one for sure",
        )
    return found


def _ends(paths: Mapping[str, tuple[str, ...]], length: int) -> dict[tuple[str, ...], list[str]]:
    """Names of the paths by their last ``length`` parts."""
    found: dict[tuple[str, ...], list[str]] = {}
    for name, parts in paths.items():
        if len(parts) >= length:
            found.setdefault(parts[-length:], []).append(name)
    return found


def rescore(
    task: RescoreTask,
    store: str,
    models: Mapping[str, Model],
    tables: Mapping[str, kernels.Tables],
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Which of the candidates [T·k] come from the task's files, and their exact scores."""
    answer = search_results.read_partial(store, task.path)
    assert answer.place is not None, "the scan keeps places where a rerank follows"
    place = answer.place.reshape(-1)
    parts = [(np.empty(0, np.int64), np.empty(0, np.float32))]
    for index, shard, fingerprint in task.shards:
        flat = np.flatnonzero(place >> PLACE_BITS == index)
        if len(flat):
            rows = place[flat] & ((1 << PLACE_BITS) - 1)
            ids = answer.ids.take(pa.array(flat))
            model, of = models[fingerprint], tables[fingerprint]
            score = _score(shard, task.columns, model, of, rows, flat // answer.k, ids)
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
    for found, X, names in read_rows(shard, columns, model.dx, np.unique(rows), kind):
        U = apply_in_fixed_blocks(X, model.embed)
        low, high = np.searchsorted(rows[order], [found[0], found[-1] + 1])
        pairs = order[low:high]
        at = np.searchsorted(found, rows[pairs])
        _same_ids(shard, names.take(pa.array(at)), ids.take(pa.array(pairs)), rows[pairs])
        scale, offset = tables.row_terms(squared_norms(U))
        for start in range(0, len(pairs), _ROWS):
            part = slice(start, start + _ROWS)
            u, w = U[at[part]].astype(np.float64), tables.W[query[pairs[part]]]
            dot = np.einsum("nd,nd->n", u, w.astype(np.float64))
            value = (dot * scale[at[part]] + offset[at[part]]) + tables.bias[query[pairs[part]]]
            with np.errstate(over="ignore"):  # is told below
                out[pairs[part]] = value.astype(np.float32)
    return kernels.check_scores(out)


def _same_ids(shard: Shard, found: pa.Array, wanted: pa.Array, rows: NDArray[np.int64]) -> None:
    differ = np.flatnonzero(np.asarray(found) != np.asarray(wanted))  # objects, for strings
    if len(differ):
        first = int(differ[0])
        raise InputError(
            f"{shard.uri}, row {rows[first]}",
            expected=f"id {wanted[first].as_py()!r} as in the code store",
            found=repr(found[first].as_py()),
        )


def read_rows(
    shard: Shard, columns: Columns, width: int, rows: NDArray[np.int64], kind: IdKind
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32], pa.Array]]:
    """Some rows (ascending) of a feature file: their numbers, vectors [n, dx] and ids of a type.

    Raises:
        InputError: a row beyond the file's end, a wrong width or type, NaN or Inf.
    """
    with open_parquet(shard.uri) as file:
        where = f"{shard.uri}, column '{columns.feature}'"
        known = stored_width(file.field(columns.feature)) or width
        file.field(columns.id)
        counts = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
        ends = np.cumsum([0, *counts])
        if rows[-1] >= ends[-1]:
            raise InputError(shard.uri, expected=f"a row {rows[-1]}", found=f"{ends[-1]} rows")
        for group in np.unique(np.searchsorted(ends, rows, side="right") - 1):
            mine = rows[(rows >= ends[group]) & (rows < ends[group + 1])]
            start = int(ends[group])
            for batch in file.iter_batches(
                batch_size=_ROWS, row_groups=[int(group)], columns=[columns.id, columns.feature]
            ):
                here = mine[(mine >= start) & (mine < start + len(batch))]
                if len(here):
                    # Converted before rows are taken, which pyarrow cannot do of every type.
                    column = batch.column(columns.feature)
                    raw = arrays.matrix(column, width=known, where=where, row0=start)
                    names = read_ids(batch.column(columns.id), kind, where=shard.uri, row0=start)
                    rows_here = here - start
                    X = _finite(arrays.any_float32(raw[rows_here]), where, here)
                    yield here, X, names.take(pa.array(rows_here))
                start += len(batch)
                if start > mine[-1]:
                    break


def _finite(X: NDArray[np.float32], where: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    bad = np.flatnonzero(~np.isfinite(X).all(axis=1))
    if len(bad):
        raise InputError(
            f"{where}, row {rows[bad[0]]}", expected="finite values", found="NaN or Inf"
        )
    return X
