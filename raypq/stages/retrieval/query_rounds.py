"""Rounds of queries: read, checked and embedded, in bounded memory.

A round is one pass over the whole code store; its size bounds what any process holds, however many
queries there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raypq.config import Columns, Distance
from raypq.data.features import open_features
from raypq.data.ids import IdRule
from raypq.data.storage import Shard
from raypq.errors import RaypqError, ShardFailure
from raypq.methods.base import Model
from raypq.stages.retrieval.query_vectors import report_invalid, vectors

_MOST = 8192  # queries in a round
_VALUES = 1 << 20  # values in a partial answer of a round


def round_size(k: int) -> int:
    """Queries in a round, by the answers that each one has; never by the machine."""
    return max(64, min(_MOST, _VALUES // k))


@dataclass(frozen=True, kw_only=True, eq=False)
class QuerySlice:
    """Consecutive queries of one file within a round.

    Attributes:
        task: number of the file. ids: of all of them. asked: which are fit to be answered.
        start: number of the first one that is asked, in the round.
    """

    task: int
    ids: pa.Array
    asked: NDArray[np.bool_]
    start: int


@dataclass(kw_only=True, eq=False)
class QueryRound:
    """One round.

    Attributes:
        V: the vectors asked for [T, D], by model fingerprint. T: queries in it.
        segments: where they come from. ends: files whose last query is here, with their id type.
        failures: files that could not be read (to their end).
    """

    V: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    T: int = 0
    segments: list[QuerySlice] = field(default_factory=list)
    ends: list[tuple[int, pa.DataType]] = field(default_factory=list)
    failures: list[tuple[int, ShardFailure]] = field(default_factory=list)


class Reader:
    """Reads query files one after another and gives rounds.

    Attributes:
        refused: what was found wrong with single queries; they are answered by an empty list.
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
        self._now = QueryRound()
        self.refused: list[str] = []

    def rounds(self, shards: Sequence[Shard]) -> Iterator[QueryRound]:
        """All queries of the files. A file that cannot be read is a failure of its own."""
        width = next(iter(self._models.values())).dx
        for task, shard in enumerate(shards):
            try:
                with open_features(
                    shard,
                    self._columns,
                    width=width,
                    labels=False,
                    finite=False,
                    rule=self._rule,
                ) as reader:
                    for batch in reader.batches():
                        yield from self._add(task, batch.X, batch.ids, shard.uri, batch.row)
                    self._now.ends.append((task, reader.id_type))
            except RaypqError as error:
                failure = ShardFailure(shard=shard.uri, reason=str(error))
                self._now.failures.append((task, failure))
        yield self._full()

    def _add(
        self, task: int, X: NDArray[np.float32], ids: pa.Array, uri: str, row: int
    ) -> Iterator[QueryRound]:
        fit = np.asarray(np.isfinite(X).all(axis=1))
        self.refused += report_invalid(ids, fit, uri, row)
        done = 0
        while done < len(X):
            part = slice(done, done + self._size - self._now.T)
            segment = QuerySlice(task=task, ids=ids[part], asked=fit[part], start=self._now.T)
            self._now.segments.append(segment)
            self._X.append(X[part][segment.asked])
            self._now.T += int(segment.asked.sum())
            done += len(segment.asked)
            room = self._size - self._now.T
            if not room:
                yield self._full()

    def _full(self) -> QueryRound:
        """The round as it is, its vectors embedded; the next one begins empty."""
        found, self._now = self._now, QueryRound()
        if found.T:
            X = np.concatenate(self._X)
            found.V = {
                name: vectors(model, X, self._distance) for name, model in self._models.items()
            }
        self._X = []
        return found
