"""Rounds of queries: read, checked and embedded, in bounded memory.

A round is the queries of one pass over the whole code store. Its size bounds the memory of every
process, however many queries there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq.config import Columns, Distance
from raypq.data.features import ReadOptions, open_features
from raypq.data.ids import IdRule
from raypq.data.storage import Shard
from raypq.errors import RaypqError, ShardFailure
from raypq.methods.base import Model
from raypq.stages.retrieval.query_vectors import report_invalid, vectors

_MAX_QUERIES = 8192  # of a round
_MAX_RESULTS = 1 << 20  # of a partial result of a round


def round_size(k: int) -> int:
    """Queries of a round, by their number of results; independent of the machine."""
    return max(64, min(_MAX_QUERIES, _MAX_RESULTS // k))


@dataclass(frozen=True, kw_only=True, eq=False)
class QuerySlice:
    """Consecutive queries of one file within a round.

    Attributes:
        task: index of the file.
        ids: of the queries. valid: which of them are searched for.
        start: position of the first valid one in the round.
    """

    task: int
    ids: pa.Array
    valid: NDArray[np.bool_]
    start: int


@dataclass(kw_only=True, eq=False)
class QueryRound:
    """The queries of one pass.

    Attributes:
        V: query vectors [T, D] by model fingerprint. T: number of queries.
        slices: the files that they come from.
        ends: indices of files whose last query is in this round, with their id type.
        failures: files that could not be read, or not to their end.
    """

    V: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    T: int = 0
    slices: list[QuerySlice] = field(default_factory=list)
    ends: list[tuple[int, pa.DataType]] = field(default_factory=list)
    failures: list[tuple[int, ShardFailure]] = field(default_factory=list)


class Reader:
    """Reads query files one after another in rounds.

    Attributes:
        refused: messages about invalid queries, which get no results.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        columns: Columns,
        *,
        distance: Distance,
        size: int,
        rule: IdRule | None,
    ) -> None:
        self._models, self._columns, self._distance = models, columns, distance
        self._size, self._rule = size, rule
        self._X: list[NDArray[np.float32]] = []
        self._round = QueryRound()
        self.refused: list[str] = []

    def rounds(self, shards: Sequence[Shard]) -> Iterator[QueryRound]:
        """All queries of the files; an unreadable file is a failure of its own."""
        model = next(iter(self._models.values()))
        for task, shard in enumerate(shards):
            try:
                with open_features(
                    shard,
                    self._columns,
                    width=model.dx,
                    how=ReadOptions(
                        labels=False, finite=False, rule=self._rule, backbone=model.backbone
                    ),
                ) as reader:
                    for batch in reader.batches():
                        yield from self._add(task, batch.X, batch.ids, shard.uri, batch.row)
                    self._round.ends.append((task, reader.id_type))
            except RaypqError as error:
                failure = ShardFailure(shard=shard.uri, reason=str(error))
                self._round.failures.append((task, failure))
        yield self._finished_round()

    def _add(
        self, task: int, X: NDArray[np.float32], ids: pa.Array, uri: str, row: int
    ) -> Iterator[QueryRound]:
        valid = np.asarray(np.isfinite(X).all(axis=1))
        self.refused += report_invalid(ids, valid, uri, row)
        done = 0
        while done < len(X):
            rows = slice(done, done + self._size - self._round.T)
            part = QuerySlice(task=task, ids=ids[rows], valid=valid[rows], start=self._round.T)
            self._round.slices.append(part)
            self._X.append(X[rows][part.valid])
            self._round.T += int(part.valid.sum())
            done += len(part.valid)
            if self._size == self._round.T:
                yield self._finished_round()

    def _finished_round(self) -> QueryRound:
        """The current round with its query vectors; begins the next one."""
        finished, self._round = self._round, QueryRound()
        if finished.T:
            X = np.concatenate(self._X)
            finished.V = {
                name: vectors(model, X, self._distance) for name, model in self._models.items()
            }
        self._X = []
        return finished
